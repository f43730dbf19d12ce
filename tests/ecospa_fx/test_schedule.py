"""The schedule: rounds on time, exactly on the target, beside everything that a training loop is made of."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import ecospa_fx
from ecospa_fx import (
    CompiledModel,
    LoadError,
    OptimizerError,
    PlanError,
    ScheduleError,
    SparsitySchedule,
)
from tests.models.snapshot import identical, untouched

UNIT = 21  # a row, its bias and a column
DENSE = 34 * UNIT + 10


def ffn(dtype: torch.dtype = torch.float64) -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 34), nn.GELU(), nn.Linear(34, 10)).to(dtype)
    return ecospa_fx.compile(model, args=(torch.randn(5, 10, dtype=dtype),))


def batches(dtype: torch.dtype = torch.float64, seed: int = 1) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(5, 10, generator=generator, dtype=dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.flip(-1)).square().mean()


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def half(compiled: nn.Module, optimizer: Optimizer, **more: Any) -> SparsitySchedule:
    return SparsitySchedule(compiled, optimizer, **{"target_ratio": 0.5, "every": 3, "end": 9, **more})


def train(
    compiled: nn.Module, optimizer: Optimizer, schedule: SparsitySchedule, data: Iterator[Tensor], steps: int
) -> list[float]:
    losses = []
    for x in itertools.islice(data, steps):
        loss = loss_of(compiled, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses


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


# What a training loop is made of.


def test_gradient_accumulation_counts_whole_steps() -> None:
    compiled, other = ffn(), ffn()
    for model, micro in ((compiled, 2), (other, 1)):
        optimizer = SGD(model.parameters(), 0.1)
        schedule = half(model, optimizer)
        for x in itertools.islice(batches(), 9):
            for part in x[:4].chunk(micro):
                (loss_of(model, part) / micro).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        assert schedule.done
    for mine, theirs in zip(compiled.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_clipped_gradients_are_what_counts() -> None:
    compiled = ffn()
    optimizer = SGD(compiled.parameters(), 0.1)
    schedule = half(compiled, optimizer)
    for x in itertools.islice(batches(), 2):
        optimizer.zero_grad()
        (1000 * loss_of(compiled, x)).backward()
        nn.utils.clip_grad_norm_(compiled.parameters(), 1e-3)
        optimizer.step()
        schedule.step()
    assert 0 < schedule.fisher.statistics.importance[0] < 1e-6
    for x in itertools.islice(batches(), 7):
        optimizer.zero_grad()
        loss_of(compiled, x).backward()
        nn.utils.clip_grad_norm_(compiled.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert schedule.done


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["zero_grad before step", "zero_grad after step"])
def test_zero_grad_may_come_before_and_after(set_to_none: bool, first: bool) -> None:
    def run(first: bool, set_to_none: bool) -> CompiledModel:
        compiled = ffn()
        optimizer = AdamW(compiled.parameters())
        schedule = half(compiled, optimizer)
        for x in itertools.islice(batches(), 11):
            loss_of(compiled, x).backward()
            optimizer.step()
            if first:
                optimizer.zero_grad(set_to_none)
            schedule.step()
            if not first:
                optimizer.zero_grad(set_to_none)
        return compiled

    mine, reference = run(first, set_to_none), run(True, True)
    assert size(mine) == DENSE - 17 * UNIT
    assert identical(dict(mine.named_parameters()), dict(reference.named_parameters()))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_is_seen_through(fused: bool) -> None:
    """Powers of two scale without round-off: every plan and parameter is as without a scaler."""
    compiled, other = ffn(torch.float32), ffn(torch.float32)
    for model, scaled in ((compiled, True), (other, False)):
        optimizer = AdamW(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4, enabled=scaled)
        schedule = half(model, optimizer)
        for x in itertools.islice(batches(torch.float32), 11):
            scaler.scale(loss_of(model, x)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
        assert schedule.done
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(fused: bool) -> None:
    compiled = ffn(torch.float32)
    optimizer = AdamW(compiled.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    schedule = half(compiled, optimizer, every=2, end=4)
    done = []
    for step, x in enumerate(itertools.islice(batches(torch.float32), 7), 1):
        scaler.scale(loss_of(compiled, x)).backward()
        if step in (1, 2, 3):
            compiled.get_parameter("0.weight").grad.fill_(float("inf"))  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        done.append(schedule.step() is not None)
    assert done == [False, False, False, True, False, False, False]
    assert size(compiled) == DENSE - 17 * UNIT


def test_autocast() -> None:
    compiled = ffn(torch.float32)
    optimizer = AdamW(compiled.parameters(), lr=0.01)
    schedule = half(compiled, optimizer)
    for x in itertools.islice(batches(torch.float32), 12):
        with torch.autocast("cpu", torch.bfloat16):
            output = compiled(x)
            loss = (output - x.flip(-1)).square().mean()
        assert output.dtype is torch.bfloat16
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert size(compiled) == DENSE - 17 * UNIT
    assert all(p.dtype is torch.float32 for p in compiled.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    compiled, other = ffn(), ffn()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = compiled

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(compiled, x.requires_grad_(), use_reentrant=reentrant)  # type: ignore[no-any-return]

    for model in (Around(), other):
        optimizer = AdamW(model.parameters())
        train(model, optimizer, half(model, optimizer), batches(), 11)
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))


@pytest.mark.parametrize("called", [True, False], ids=["captured", "copied before any call"])
def test_an_average_shrinks_with_the_model(called: bool) -> None:
    compiled = ffn() if called else ecospa_fx.compile(ffn().source)
    average = AveragedModel(compiled, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = AdamW(compiled.parameters(), lr=0.1)
    schedule = half(compiled, optimizer, followers=[average])
    for x in itertools.islice(batches(), 11):
        loss_of(compiled, x).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(compiled)
        for mine, theirs in zip(average.module.parameters(), compiled.parameters(), strict=True):
            assert mine.shape == theirs.shape
    assert size(average) == size(compiled) == DENSE - 17 * UNIT
    x = next(batches(seed=7))
    assert average(x).shape == x.shape
    assert 0 < (average(x) - compiled(x)).abs().max() < 1


def test_a_follower_that_cannot_follow_stops_the_round() -> None:
    compiled = ffn()
    average = AveragedModel(compiled)
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer, followers=[average])
    train(compiled, optimizer, schedule, batches(), 2)
    loss_of(average, next(batches())).backward()
    average.module.sparsify(ratio=0.9)
    loss_of(compiled, next(batches())).backward()
    optimizer.step()
    with untouched(compiled, optimizer), pytest.raises(PlanError, match="gone already"):
        schedule.step()


LR: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
    "one cycle": lambda o: OneCycleLR(o, 0.1, total_steps=12),
}


@pytest.mark.parametrize("rate", LR.values(), ids=LR)
@pytest.mark.parametrize("order", [True, False], ids=["schedule first", "rate first"])
def test_learning_rate_schedules(rate: Callable[[Optimizer], Any], order: bool) -> None:
    compiled, other = ffn(), ffn()
    optimizer, reference = AdamW(compiled.parameters()), AdamW(other.parameters())
    rates = rate(optimizer), rate(reference)
    schedule = half(compiled, optimizer)
    for x in itertools.islice(batches(), 11):
        for model, opt in ((compiled, optimizer), (other, reference)):
            loss_of(model, x).backward()
            opt.step()
            opt.zero_grad()
        for one in (schedule, rates[0]) if order else (rates[0], schedule):
            one.step()
        rates[1].step()
        assert rates[0].get_last_lr() == rates[1].get_last_lr()
    assert schedule.done


def test_two_optimizers() -> None:
    compiled = ffn()
    up, down = (compiled.get_submodule(n) for n in ("0", "2"))
    optimizers: list[Optimizer] = [SGD(up.parameters(), 0.1, momentum=0.9), AdamW(down.parameters(), 0.1)]
    schedule = SparsitySchedule(compiled, optimizers, target_ratio=0.5, every=2, end=4)
    for x in itertools.islice(batches(), 6):
        loss_of(compiled, x).backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        schedule.step()
    assert optimizers[0].state[up.weight]["momentum_buffer"].shape == (17, 10)
    assert optimizers[1].state[down.weight]["exp_avg"].shape == (10, 17)


# Checkpoints.


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 10], ids=lambda n: f"after {n}")
@pytest.mark.parametrize("files", [False, True], ids=["in memory", "as files"])
def test_a_run_resumes_bit_for_bit(stop: int, files: bool, tmp_path: Path) -> None:
    def start() -> tuple[CompiledModel, Optimizer, SparsitySchedule]:
        compiled = ffn()
        optimizer = AdamW(compiled.parameters(), lr=0.01)
        return compiled, optimizer, half(compiled, optimizer)

    data = [next(batches(seed=i)) for i in range(14)]
    compiled, optimizer, schedule = start()
    expected = train(compiled, optimizer, schedule, iter(data), 14)

    first, first_optimizer, first_schedule = start()
    losses = train(first, first_optimizer, first_schedule, iter(data), stop)
    first_schedule.save(tmp_path)
    saved = copy.deepcopy(
        [x.state_dict() for x in (first_schedule, first, first_optimizer)]  # type: ignore[attr-defined]
    )

    second, second_optimizer, second_schedule = start()
    train(second, second_optimizer, second_schedule, batches(seed=99), 2)  # whatever it was before
    if files:
        second_schedule.load(tmp_path)
    else:
        second_schedule.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    second_optimizer.load_state_dict(saved[2])
    assert second_schedule.steps == stop if stop < 9 else 9
    losses += train(second, second_optimizer, second_schedule, iter(data[stop:]), 14 - stop)
    assert losses == expected
    assert identical(dict(second.named_parameters()), dict(compiled.named_parameters()))
    assert len(second_schedule.reports) == len(schedule.reports)


def test_the_state_is_json_but_for_its_tensors() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 4)
    state = schedule.state_dict()
    fisher = state.pop("fisher")
    assert json.loads(json.dumps(state)) == state
    assert {type(v) for v in fisher.values()} == {int, Tensor}


def test_a_state_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 4)
    state = schedule.state_dict()

    wide = ecospa_fx.compile(
        nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.Linear(40, 10)).double(), args=(next(batches()),)
    )
    other = AdamW(wide.parameters())
    fresh = half(wide, other)
    with untouched(wide, other), pytest.raises(ScheduleError, match=r"does not fit the model: .*0\.weight"):
        fresh.load_state_dict(state)
    assert fresh.steps == 0

    ahead = ffn()
    loss_of(ahead, next(batches())).backward()
    ahead.sparsify(ratio=0.4, score=lambda context: -torch.arange(context.size).double().numpy())
    with pytest.raises(ScheduleError, match="gone already"):
        half(ahead, AdamW(ahead.parameters())).load_state_dict(state)

    short = ffn()
    optimizer = AdamW(short.parameters())
    fisher = {k: v[:3] if isinstance(v, Tensor) else v for k, v in state["fisher"].items()}
    with untouched(short, optimizer), pytest.raises(ScheduleError, match="Fisher sums are of another model"):
        half(short, optimizer).load_state_dict({**state, "fisher": fisher})

    twin = ffn()
    with pytest.raises(OptimizerError, match="taken with AdamW, and the run goes on with SGD"):
        half(twin, SGD(twin.parameters(), 0.1)).load_state_dict(state)
    with pytest.raises(OptimizerError, match="another order"):
        half(twin, AdamW(reversed(list(twin.parameters())))).load_state_dict(state)
    with pytest.raises(ScheduleError, match="every was 3, now 4"):
        half(twin, AdamW(twin.parameters()), every=4).load_state_dict(state)
    with pytest.raises(ScheduleError, match="lacks config"):
        half(twin, AdamW(twin.parameters())).load_state_dict({"format": 1})
    assert size(twin) == DENSE


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    compiled = ffn()
    schedule = half(compiled, AdamW(compiled.parameters()))
    with pytest.raises(LoadError, match=r"no sparsity\.json"):
        schedule.load(tmp_path)
    schedule.save(tmp_path)
    (tmp_path / "sparsity.json").write_text("{")
    with pytest.raises(LoadError, match="damaged"):
        schedule.load(tmp_path)


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
