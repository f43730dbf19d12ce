"""Watch: the gradients that count are those with which the optimizer steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from ecospa_fx import CompiledModel
from tests.models.snapshot import identical
from tests.models.training import DENSE, UNIT, batches, ffn, half, loss_of, size, train


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


def test_gradients_that_were_unscaled_and_clipped_by_hand() -> None:
    compiled, other = ffn(torch.float32), ffn(torch.float32)
    for model, scaled in ((compiled, True), (other, False)):
        optimizer = AdamW(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        schedule = half(model, optimizer)
        for x in itertools.islice(batches(torch.float32), 10):
            scaler.scale(loss_of(model, x)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        assert schedule.done
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))


def test_all_at_once() -> None:
    """Accumulation, autocast, scaler, clipping, checkpointing, an average and a rate, over three rounds."""
    compiled = ffn(torch.float32)
    average = AveragedModel(compiled, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = AdamW(compiled.parameters(), lr=0.01)
    rate = OneCycleLR(optimizer, 0.01, total_steps=12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    schedule = half(compiled, optimizer, followers=[average])
    for x in itertools.islice(batches(torch.float32), 11):
        for part in x[:4].chunk(2):
            with torch.autocast("cpu", torch.bfloat16):
                output = checkpoint(compiled, part, use_reentrant=False)
                loss = (output - part.flip(-1)).square().mean() / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(compiled.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        rate.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        average.update_parameters(compiled)
    assert len(schedule.reports) == 3
    assert size(average) == size(compiled) == DENSE - 17 * UNIT
    assert all(p.isfinite().all() for p in (*compiled.parameters(), *average.parameters()))
    assert compiled.verify().within(1e-5)
