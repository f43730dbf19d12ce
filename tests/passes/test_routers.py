"""Whole experts go with the rows of their router, and are never chosen again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ecospa_fx
from ecospa_fx import CompiledModel, PlanError
from ecospa_fx.masked import widen
from ecospa_fx.removal import Removal
from ecospa_fx.testing import random_removal, removal_of
from tests.models import routed
from tests.models.routed import CHOSEN, EXPERTS, HIDDEN, WIDTH, Routed

EVERY = ("ffn", "expert")


def made(kind: type[Routed], dtype: torch.dtype = torch.float64) -> tuple[CompiledModel, Routed]:
    """A compiled model, and a dense one to compare it with."""
    torch.manual_seed(0)
    model = kind().to(dtype)
    dense = copy.deepcopy(model)
    return ecospa_fx.compile(model, args=(torch.randn(11, WIDTH, dtype=dtype),)), dense


def lost_experts(model: CompiledModel) -> Tensor:
    lost = torch.zeros(EXPERTS, dtype=torch.bool)
    lost[torch.from_numpy(np.array(model.removal.removed.get("up", {}).get(0, []), np.int64))] = True
    return lost


def assert_never_chosen(model: CompiledModel, dense: Routed, tolerance: float = 1e-9) -> None:
    """Outputs and gradients of the dense model with masked parameters and experts that it never chooses."""
    x = torch.randn(23, WIDTH, dtype=model.up.dtype)
    with torch.no_grad():
        for name, p in dense.named_parameters():
            small = dict(model.named_parameters())[name]
            p.copy_(widen(small.detach(), name, tuple(p.shape), model.removal))
    dense.lost = lost_experts(model)
    found, expected = model(x), dense(x)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, p in dense.named_parameters():
        small = dict(model.named_parameters())[name]
        wanted = p.grad * model.kept_mask(name)  # type: ignore[operator]
        got = widen(small.grad, name, tuple(p.shape), model.removal)  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    model.zero_grad()
    dense.zero_grad()


def without(model: CompiledModel, *experts: int) -> Removal:
    """Whole experts, by their dense numbers."""
    graph = model.couplings
    dead = np.zeros(len(graph.couple_of), bool)
    axis = next(a for a in graph.axes if (a.parameter, a.axis) == ("router.weight", 0))
    dead[axis.components[list(experts)]] = True
    return removal_of(model, dead)


@pytest.mark.parametrize("kind", routed.GO)
def test_experts_go_and_are_never_chosen(kind: type[Routed]) -> None:
    model, dense = made(kind)
    assert [c.num_units for c in model.couplings.couples if c.kind == "expert"] == [EXPERTS]
    optimizer = torch.optim.AdamW(model.parameters())
    for seed in (1, 2, 3):
        model(torch.randn(7, WIDTH, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.apply(random_removal(model, 0.5, seed, kinds=EVERY), optimizer)
        assert model.verify().within(1e-9)
        assert_never_chosen(model, dense)
    left = model.up.shape[0]
    assert left == model.router.weight.shape[0] == model.down_bias.shape[0] < EXPERTS


def test_a_grouped_product_gets_the_runs_of_those_that_are_left() -> None:
    model, dense = made(routed.InRuns, torch.float32)
    for seed in (1, 2):
        model.apply(random_removal(model, 0.4, seed, kinds=EVERY))
        assert model.verify().within(1e-5)
        assert_never_chosen(model, dense, 1e-4)
    assert model.up.shape[0] < EXPERTS


@pytest.mark.parametrize("kind", routed.GO)
def test_hidden_units_alone_go_as_ever(kind: type[Routed]) -> None:
    model, _ = made(kind)
    model.apply(random_removal(model, 0.4, 1))
    assert model.up.shape[0] == EXPERTS
    assert model.verify().within(1e-9)


def test_an_expert_takes_its_hidden_units_along() -> None:
    model, dense = made(routed.SoftmaxFirst)
    model.apply(without(model, 0, 3))
    assert tuple(model.up.shape) == (EXPERTS - 2, 2 * HIDDEN, WIDTH)
    assert tuple(model.router.weight.shape) == (EXPERTS - 2, WIDTH)
    assert_never_chosen(model, dense)


@pytest.mark.parametrize("left", [CHOSEN, CHOSEN - 1])
def test_as_many_experts_stay_as_a_token_takes(left: int) -> None:
    model, dense = made(routed.SoftmaxFirst)
    removal = without(model, *range(EXPERTS - left))
    if left >= CHOSEN:
        model.apply(removal)
        assert_never_chosen(model, dense)
    else:
        with pytest.raises(PlanError, match="takes 2 for each token: at least 2 have to stay"):
            model.apply(removal)
        assert model.up.shape[0] == EXPERTS


def test_every_group_keeps_as_many_as_it_may_have_to_give() -> None:
    model, _ = made(routed.Grouped)
    with pytest.raises(PlanError, match="in one of its 4 groups"):
        model.apply(without(model, 0, 1))


def test_hidden_units_that_are_all_gone_do_not_take_their_expert_along() -> None:
    model, _ = made(routed.SoftmaxFirst)
    graph, analysis = model.couplings, model.analysis
    dead = np.zeros(len(graph.couple_of), bool)
    dead[next(c for c in graph.couples if c.kind == "ffn").units] = True
    experts = next(c for c in graph.couples if c.kind == "expert").units
    assert not analysis.partition.close(dead)[experts].any()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (routed.Tanh, "tanh"),
        (routed.Balanced, "mean"),
        (routed.ReadTwice, "read in another way than by number"),
    ],
)
def test_experts_stay_where_nothing_is_proved(kind: type[Routed], reason: str) -> None:
    model, _ = made(kind)
    assert not [c for c in model.couplings.couples if c.kind == "expert"]
    assert reason in model.explain("up")
    model.apply(random_removal(model, 0.4, kinds=EVERY))
    assert model.verify().within(1e-9)


def test_experts_stay_where_a_mask_may_leave_too_few() -> None:
    torch.manual_seed(0)
    allowed = torch.ones(11, EXPERTS, dtype=torch.bool)
    model = ecospa_fx.compile(routed.Masked().double(), args=(torch.randn(11, WIDTH).double(), allowed))
    assert "how many experts are left to choose from is not known" in model.explain("up")


def test_experts_that_leave_a_part_of_them_behind_are_none() -> None:
    model, _ = made(routed.InPart)
    for seed in (1, 2):
        model.apply(random_removal(model, 0.4, seed, kinds=EVERY))
        assert model.verify().within(1e-9)
        assert model.down.shape[0] == EXPERTS


@pytest.mark.parametrize("kinds", [("expert",), EVERY])
@pytest.mark.parametrize("score", ["fisher", "magnitude", "taylor", "l1_product"])
def test_a_plan_counts_what_goes(kinds: tuple[str, ...], score: str) -> None:
    model, dense = made(routed.TopkFirst)
    optimizer = torch.optim.AdamW(model.parameters())
    for ratio in (0.3, 0.2):
        model(torch.randn(50, WIDTH, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        plan = model.plan(ratio=ratio, kinds=kinds, score=score, allocation="uniform")
        model.sparsify(ratio=ratio, kinds=kinds, score=score, allocation="uniform", optimizer=optimizer)
        assert plan.params_after == sum(p.numel() for p in model.parameters())
        optimizer.zero_grad()
        assert model.verify().within(1e-9)
        assert_never_chosen(model, dense)
    assert model.up.shape[0] < EXPERTS


def test_a_ratio_that_would_take_too_many_is_out_of_reach() -> None:
    model, _ = made(routed.SoftmaxFirst)
    model(torch.randn(50, WIDTH, dtype=torch.float64)).square().mean().backward()
    with pytest.raises(PlanError, match=r"out of reach(.|\n)*as many experts as each token takes"):
        model.sparsify(ratio=0.9, kinds=("expert",))


def test_ratios_by_kind(tmp_path: Any) -> None:
    model, dense = made(routed.SoftmaxFirst)
    model(torch.randn(50, WIDTH, dtype=torch.float64)).square().mean().backward()
    model.sparsify(ratio={"expert": 0.25, "ffn": 0.3})
    assert model.up.shape[0] == EXPERTS * 3 // 4
    model.zero_grad()
    assert_never_chosen(model, dense)
    model.save(tmp_path)
    again = ecospa_fx.load(tmp_path, routed.SoftmaxFirst().double())
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(again(x), model(x))


def test_ratios_are_met_in_one_way_by_every_layout_of_heads() -> None:
    for heads in ("uniform", "ragged"):
        model, dense = made(routed.SoftmaxFirst)
        model(torch.randn(50, WIDTH, dtype=torch.float64)).square().mean().backward()
        model.sparsify(ratio=0.4, kinds=EVERY, heads=heads, allocation="uniform")
        model.zero_grad()
        assert model.up.shape[0] < EXPERTS
        assert_never_chosen(model, dense)


def test_calibration_sees_only_the_experts_that_are_left() -> None:
    model, _ = made(routed.SoftmaxFirst)
    model.apply(without(model, 0, 5))
    batches = [torch.randn(30, WIDTH, dtype=torch.float64)]
    model.sparsify(ratio=0.3, calibration=batches, kinds=EVERY, allocation="uniform")
    assert model.verify().within(1e-9)


def test_whole_heads_are_no_experts() -> None:
    model, _ = made(routed.SoftmaxFirst)
    model(torch.randn(50, WIDTH, dtype=torch.float64)).square().mean().backward()
    model.sparsify(ratio=0.3, remove_heads=True)
    assert model.up.shape[0] == EXPERTS
    assert model.verify().within(1e-9)
