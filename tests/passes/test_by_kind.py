"""By kind: each kind meets its own share, to a unit, and all others stay."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, PlanError, ScheduleError, SparsitySchedule
from ecospa_fx.passes.by_kind import held_by
from ecospa_fx.removal import Removal
from tests.models.config import Config
from tests.models.snapshot import identical, untouched
from tests.models.transformer import build, tokens

CONFIG = Config(kv_heads=2, group=2, rope="half", activation="swiglu")


def compiled() -> CompiledModel:
    return ecospa_fx.compile(build(CONFIG), args=tokens(CONFIG))


def backward(model: CompiledModel) -> None:
    model(*tokens(CONFIG)).square().mean().backward()


def held(model: CompiledModel, kind: str, removal: Removal | None = None) -> int:
    graph, partition = model.couplings, model.analysis.partition
    return held_by(graph, partition, model.removal if removal is None else removal, kind)


def one_step(model: CompiledModel, kind: str) -> float:
    """Most parameters that go at once: one unit of each couple of a layer."""
    couples = [c for c in model.couplings.couples if c.kind == kind]
    return max(held(model, kind, Removal()) / c.num_units for c in couples)


RATIOS: list[dict[str, float]] = [
    {"ffn": 0.5, "qk": 0.25},
    {"qk": 0.25, "ffn": 0.5},
    {"vo": 0.5},
    {"ffn": 0.0, "vo": 0.5},
]


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
def test_each_kind_meets_its_share(ratios: dict[str, float]) -> None:
    model = compiled()
    backward(model)
    dense = {k: held(model, k) for k in ("qk", "vo", "ffn")}
    report = model.sparsify(ratio=ratios)
    for kind, before in dense.items():
        wanted = (1 - ratios.get(kind, 0.0)) * before
        assert wanted - one_step(model, kind) < held(model, kind) <= wanted
    assert report.params_before - report.params_after == report.coupled_before - report.coupled_after
    assert {loss.kind for loss in report.losses} == ratios.keys()
    assert model.verify().within(1e-9)


def test_the_order_of_kinds_does_not_matter() -> None:
    models = compiled(), compiled()
    for model, ratios in zip(models, RATIOS, strict=False):
        backward(model)
        model.sparsify(ratio=ratios)
    one, other = (dict(m.named_parameters()) for m in models)
    assert identical(one, other)


def test_a_plan_by_kind_is_data_like_any_other() -> None:
    model = compiled()
    backward(model)
    plan = model.plan(ratio=RATIOS[0])
    assert ecospa_fx.plan.Plan.from_json(plan.to_json()) == plan
    with untouched(model):
        model.plan(ratio=RATIOS[0])
    model.apply(plan)
    assert held(model, "vo") == held(model, "vo", Removal())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such kind": ({"ratio": {"fnn": 0.1}}, "no couples of kind 'fnn'; there are ffn"),
    "none at all": ({"ratio": {}}, "empty mapping"),
    "out of reach": ({"ratio": {"qk": 0.99}}, "kind 'qk': ratio 0.99 is out of reach.* at most"),
    "malformed": ({"ratio": {"qk": 1.5}}, r"kind 'qk': ratio is 1\.5"),
    "limits": ({"ratio": {"ffn": 0.5}, "limits": {"ffn": 0.2}}, "kind 'ffn': .*0\\.1.* at most"),
    "whole heads": ({"ratio": {"vo": 0.2}, "remove_heads": True}, "remove_heads give one ratio"),
    "two targets": ({"ratio": {"vo": 0.2}, "target_params": 10}, "and not both"),
}


@pytest.mark.parametrize(("given", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be_met(given: dict[str, Any], match: str) -> None:
    model = compiled()
    backward(model)
    with untouched(model), pytest.raises(PlanError, match=match):
        model.sparsify(**given)


def train(model: CompiledModel, optimizer: AdamW, schedule: SparsitySchedule, steps: int) -> list[int]:
    sizes = []
    for _ in range(steps):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        sizes.append(sum(p.numel() for p in model.parameters()))
    return sizes


def scheduled(model: CompiledModel, ratio: Any) -> tuple[AdamW, SparsitySchedule]:
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return optimizer, SparsitySchedule(model, optimizer, target_ratio=ratio, every=2, end=6)


@pytest.mark.parametrize("ratios", RATIOS[:3], ids=str)
def test_a_schedule_ends_on_the_target_of_each_kind(ratios: dict[str, float]) -> None:
    model = compiled()
    optimizer, schedule = scheduled(model, ratios)
    sizes = train(model, optimizer, schedule, 6)
    for kind in ("qk", "vo", "ffn"):
        wanted = (1 - ratios.get(kind, 0.0)) * held(model, kind, Removal())
        assert wanted - one_step(model, kind) < held(model, kind) <= wanted
    assert all(a >= b for a, b in pairwise(sizes))
    assert 0 <= schedule.size_at(6) - sizes[-1] < sum(one_step(model, k) for k in ratios)
    assert model.verify().within(1e-9)


def test_ratios_by_kind_count_from_the_dense_model() -> None:
    model, whole = compiled(), compiled()
    backward(model)
    model.sparsify(ratio={"ffn": 0.25})
    model.zero_grad()
    for one in (model, whole):
        train(one, *scheduled(one, {"ffn": 0.5}), 6)
    assert held(model, "ffn") == held(whole, "ffn")


def test_a_schedule_by_kind_resumes_bit_for_bit() -> None:
    models = [compiled() for _ in range(3)]
    runs = [scheduled(m, {"ffn": 0.5, "vo": 0.25}) for m in models]
    train(models[0], *runs[0], 7)
    train(models[1], *runs[1], 3)
    for target, source in ((runs[2][1], runs[1][1]), (models[2], models[1]), (runs[2][0], runs[1][0])):
        target.load_state_dict(source.state_dict())  # type: ignore[attr-defined]
    train(models[2], *runs[2], 4)
    assert identical(dict(models[2].named_parameters()), dict(models[0].named_parameters()))
    with pytest.raises(ScheduleError, match=r"target_ratio was \{'ffn': 0.5, 'vo': 0.25\}, now 0.3"):
        scheduled(models[2], 0.3)[1].load_state_dict(runs[1][1].state_dict())


def test_a_schedule_out_of_reach_says_the_kind() -> None:
    with pytest.raises(PlanError, match=r"kind .qk.: ratio 0\.99 is out of reach"):
        scheduled(compiled(), {"ffn": 0.5, "qk": 0.99})
