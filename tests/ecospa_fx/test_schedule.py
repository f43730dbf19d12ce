"""The schedule: rounds on time, exactly on the target, beside everything that a training loop is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import ecospa_fx
from ecospa_fx import (
    CompiledModel,
    OptimizerError,
    PlanError,
    ScheduleError,
)
from tests.models.snapshot import identical, untouched
from tests.models.training import DENSE, UNIT, batches, ffn, half, loss_of, size, train


def agree(compiled: CompiledModel, optimizer: Optimizer) -> None:
    """Moments have the shapes of what they belong to, and the model is its masked self."""
    for param in compiled.parameters():
        assert all(v.shape in (param.shape, ()) for v in optimizer.state[param].values())
    assert compiled.verify().within(1e-6)


@pytest.mark.parametrize(("ramp", "kept"), [("cubic", [22, 17, 17]), ("linear", [28, 22, 17])])
def test_rounds_follow_the_ramp_and_end_on_the_target(ramp: str, kept: list[int]) -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, ramp=ramp)
    seen = []
    for _ in range(12):
        train(compiled, optimizer, schedule, batches(), 1)
        seen.append(size(compiled))
    assert [report.losses[0].after for report in schedule.reports] == kept
    assert seen[1] == DENSE
    assert seen[8] == seen[11] == DENSE - 17 * UNIT
    assert schedule.last is schedule.reports[-1]
    assert schedule.sparsity == pytest.approx(17 * UNIT / DENSE)
    agree(compiled, optimizer)


@pytest.mark.parametrize("target", [DENSE, 600, 345, 31])
def test_a_size_is_met(target: int) -> None:
    compiled = ffn()
    optimizer = SGD(compiled.parameters(), 0.1)
    schedule = half(compiled, optimizer, target_ratio=None, target_params=target, end=4)
    train(compiled, optimizer, schedule, batches(), 5)
    assert target - UNIT < size(compiled) <= target


def test_a_single_round() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, start=4, end=4)
    train(compiled, optimizer, schedule, batches(), 6)
    assert [report.losses[0].after for report in schedule.reports] == [17]


def test_the_ratio_counts_from_the_dense_model() -> None:
    compiled = ffn()
    loss_of(compiled, next(batches())).backward()
    compiled.sparsify(ratio=0.25)
    compiled.zero_grad()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 9)
    assert size(compiled) == DENSE - 17 * UNIT
    assert schedule.size_at(0) == DENSE - 9 * UNIT


def test_after_the_end_the_schedule_is_out_of_the_way() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 9)
    assert schedule.done
    assert not optimizer._optimizer_step_pre_hooks
    state = schedule.state_dict()
    assert [schedule.step() for _ in range(3)] == [None] * 3
    assert schedule.steps == state["steps"] == 9


def test_what_it_reads_is_what_an_accumulator_reads() -> None:
    """Same plan as an accumulator that is fed by hand, over the steps since the last round."""
    compiled, other = ffn(), ffn()
    optimizers = [AdamW(m.parameters()) for m in (compiled, other)]
    schedule = half(compiled, optimizers[0], every=4, end=8, ramp="linear")
    fisher = ecospa_fx.FisherAccumulator(other)
    data = [next(batches(seed=i)) for i in range(8)]
    train(compiled, optimizers[0], schedule, iter(data), 8)
    for step, x in enumerate(data, 1):
        loss_of(other, x).backward()
        fisher.update()
        optimizers[1].step()
        optimizers[1].zero_grad()
        if step % 4 == 0:
            other.sparsify(fisher, target_params=schedule.size_at(step), optimizer=optimizers[1])
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))


def test_some_steps_of_an_interval_are_enough() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, every=10, end=10, samples=3)
    train(compiled, optimizer, schedule, batches(), 9)
    assert schedule.fisher.samples == 2
    train(compiled, optimizer, schedule, batches(), 1)
    assert size(compiled) == DENSE - 17 * UNIT


def test_heads_and_limits() -> None:
    from tests.models.config import Config
    from tests.models.transformer import build, tokens

    config = Config(kv_heads=2, group=2, rope="half", activation="swiglu")
    compiled = ecospa_fx.compile(build(config), args=tokens(config))
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, end=6, limits={"qk": 0.25})
    for _ in range(6):
        compiled(*tokens(config)).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    lost = {
        k: sum(x.dense - x.after for x in schedule.reports[-1].losses if x.kind == k) for k in ("qk", "ffn")
    }
    dense = sum(x.dense for x in schedule.reports[-1].losses if x.kind == "qk")
    assert 0 <= lost["qk"] <= 0.25 * dense
    assert lost["ffn"] > 0
    agree(compiled, optimizer)


# What is refused.


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no target": ({"target_ratio": None}, ScheduleError, "either target_ratio or target_params"),
    "two targets": ({"target_params": 300}, ScheduleError, "and not both"),
    "a ratio of one": ({"target_ratio": 1.0}, ScheduleError, r"not in \[0, 1\)"),
    "out of reach": ({"target_ratio": 0.99}, PlanError, r"0\.97.* at most"),
    "a size out of reach": ({"target_ratio": None, "target_params": 20}, PlanError, "31 parameters stay"),
    "limits": ({"limits": {"ffn": 0.3}}, PlanError, r"0\.29.* at most"),
    "end before start": ({"start": 10}, ScheduleError, "before start"),
    "every": ({"every": 0}, ScheduleError, "every is 0"),
    "a float": ({"end": 9.0}, ScheduleError, "end is 9.0"),
    "ramp": ({"ramp": "quadratic"}, ScheduleError, "cubic, linear"),
    "samples": ({"samples": 0}, ScheduleError, "samples is 0"),
    "a setting": ({"tresh": 1}, PlanError, "unknown setting"),
    "top_k": ({"top_k": 0.0}, PlanError, "top_k"),
    "a kind": ({"kinds": ("fnn",)}, ecospa_fx.EcoSpaError, "fnn"),
    "score": ({"score": "fischer"}, ecospa_fx.ScoreError, "fisher"),
    "a score of activations": ({"score": "activation"}, ScheduleError, "calibration data"),
    "a follower": ({"followers": [nn.Linear(2, 2)]}, ScheduleError, "no compiled model in Linear"),
}


@pytest.mark.parametrize(("more", "error", "match"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_at_once(more: dict[str, Any], error: type[Exception], match: str) -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    with untouched(compiled, optimizer), pytest.raises(error, match=match):
        half(compiled, optimizer, **more)
    assert not optimizer._optimizer_step_pre_hooks


def test_optimizers_that_do_not_hold_the_model() -> None:
    compiled = ffn()
    with pytest.raises(OptimizerError, match="another copy of the model"):
        half(compiled, AdamW(ffn().parameters()))
    with pytest.raises(OptimizerError, match=r"holds '2\.weight'"):
        half(compiled, AdamW(compiled.get_submodule("0").parameters()))
    with pytest.raises(OptimizerError, match="LBFGS"):
        half(compiled, torch.optim.LBFGS(compiled.parameters()))
    with pytest.raises(ScheduleError, match=r"ecospa_fx\.compile"):
        half(compiled.source, AdamW(compiled.parameters()))


def test_a_model_that_was_never_called_is_checked_in_its_first_step() -> None:
    compiled = ecospa_fx.compile(ffn().source)
    optimizer = AdamW(compiled.parameters())
    half(compiled, optimizer, target_ratio=0.99)
    loss_of(compiled, next(batches())).backward()
    with untouched(compiled, optimizer), pytest.raises(PlanError, match="at most"):
        optimizer.step()


def test_an_optimizer_swapped_in_between() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, end=60)
    train(compiled, optimizer, schedule, batches(), 4)
    new = SGD(compiled.parameters(), 0.1)
    with pytest.raises(ScheduleError, match=r"AdamW has not stepped .* schedule\.watch"):
        train(compiled, new, schedule, batches(), 50)
    with pytest.raises(OptimizerError):
        schedule.watch(SGD(ffn().parameters(), 0.1))
    schedule.watch(new)
    train(compiled, new, schedule, batches(), 60)
    assert schedule.done
    assert size(compiled) == DENSE - 17 * UNIT


def test_a_round_that_fails_is_made_up_for() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    calls = []

    def score(context: Any) -> Any:
        calls.append(context)
        values = torch.arange(context.size).double().numpy()
        return values * float("nan") if len(calls) == 1 else values

    schedule = half(compiled, optimizer, score=score)
    with pytest.raises(ecospa_fx.ScoreError, match="NaN"):
        train(compiled, optimizer, schedule, batches(), 3)
    assert size(compiled) == DENSE
    train(compiled, optimizer, schedule, batches(), 1)
    assert schedule.reports[0].losses[0].after == 19
    train(compiled, optimizer, schedule, batches(), 5)
    assert size(compiled) == DENSE - 17 * UNIT


def test_gradients_that_are_not_finite_stop_the_step() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    half(compiled, optimizer)
    (loss_of(compiled, next(batches())) * float("nan")).backward()
    with untouched(compiled, optimizer), pytest.raises(ecospa_fx.GradientError, match="NaN"):
        optimizer.step()
