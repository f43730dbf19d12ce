"""Lockstep: averages, learning rates and several optimizers go along."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ecospa_fx
from ecospa_fx import PlanError, SparsitySchedule
from tests.models.snapshot import untouched
from tests.models.training import DENSE, UNIT, batches, ffn, half, loss_of, size, train


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
