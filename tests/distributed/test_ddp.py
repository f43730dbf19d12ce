"""DistributedDataParallel on two gloo processes: one run, whether one process makes it or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule
from tests.distributed.nets import mine
from tests.distributed.processes import RANKS, Check, passed, refused, run, same_on_all_ranks

STEPS = 10
UNIT = 21
DENSE = 34 * UNIT + 10


def model(seed: int = 0) -> CompiledModel:
    torch.manual_seed(seed)
    ffn = nn.Sequential(nn.Linear(10, 34), nn.GELU(), nn.Linear(34, 10)).double()
    return ecospa_fx.compile(ffn, args=(torch.randn(5, 10, dtype=torch.float64),))


def batch(step: int) -> Tensor:
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def loss_of(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) - x.flip(-1)).square().mean()


def train(
    compiled: CompiledModel, module: nn.Module, steps: range, part: Callable[[Tensor], Tensor], **more: Any
) -> tuple[list[Tensor], SparsitySchedule, AdamW]:
    optimizer = AdamW(compiled.parameters(), lr=0.01)
    schedule = SparsitySchedule(module, optimizer, **{"target_ratio": 0.5, "every": 3, "end": 8, **more})
    losses = []
    for step in steps:
        loss = loss_of(module, part(batch(step)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.detach())
    return losses, schedule, optimizer


def losses_of_two(folder: Path) -> None:
    """Every way to wrap goes on through all rounds, and gives what one process gives."""
    expected = [loss.item() for loss in torch.load(folder / "losses.pt")]
    for options in (
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True, "broadcast_buffers": False},
    ):
        compiled = model(seed=dist.get_rank())  # rank 0 sends its weights
        ddp = DistributedDataParallel(compiled, **options)
        if not options:
            ddp.register_comm_hook(None, halve)
        losses, schedule, _ = train(compiled, ddp, range(STEPS), mine)
        for loss in losses:
            dist.all_reduce(loss)
        torch.testing.assert_close([x.item() / RANKS for x in losses], expected, rtol=1e-9, atol=0)
        assert sum(p.numel() for p in ddp.parameters()) == DENSE - 17 * UNIT
        assert len(schedule.reports) == 3
        assert same_on_all_ranks([p.tolist() for p in compiled.parameters()])
        assert isinstance(ddp, DistributedDataParallel)
        if not options:
            assert halve.calls > 0


def halve(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations
    """A communication hook that does what DDP does itself."""
    halve.calls += 1
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda w: w.value()[0] / RANKS)


halve.calls = 0  # type: ignore[attr-defined]


def unsynchronised_gradients(folder: Path) -> None:
    """Without DDP each rank has gradients of its own: the sums over ranks decide, on all alike."""
    compiled = model()
    optimizer = AdamW(compiled.parameters(), lr=0.0, weight_decay=0.0)
    schedule = SparsitySchedule(compiled, optimizer, target_ratio=0.5, every=2, end=2)
    other = model()
    fisher = ecospa_fx.FisherAccumulator(other)
    for step in range(2):
        for x in batch(step).chunk(RANKS):
            other.zero_grad()
            loss_of(other, x).backward()
            fisher.update()
        loss_of(compiled, mine(batch(step))).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    other.sparsify(fisher, ratio=0.5)
    assert torch.equal(compiled.kept_mask("0.bias"), other.kept_mask("0.bias"))
    assert same_on_all_ranks(compiled.kept_mask("0.bias").tolist())


def disagreement(folder: Path) -> None:
    """Clear errors on all ranks, and nothing is cut."""
    rank = dist.get_rank()
    compiled = model()
    error = refused(lambda: train(compiled, compiled, range(4), mine, every=3 + rank))
    assert "the ranks disagree on the schedule: ranks 0 against ranks 1" in error
    compiled = model(seed=rank)
    error = refused(lambda: train(compiled, compiled, range(4), mine, score="magnitude"))
    assert "the ranks disagree on what goes in this round" in error
    assert sum(p.numel() for p in compiled.parameters()) == DENSE


def failure_on_one(folder: Path) -> None:
    """What fails on rank 1 fails on rank 0 as well, before and after the cut."""
    rank = dist.get_rank()

    def score(context: Any) -> Any:
        return torch.arange(context.size).double().numpy() * (float("nan") if rank else 1.0)

    compiled = model()
    error = refused(lambda: train(compiled, compiled, range(3), mine, score=score))
    assert "NaN" in error
    assert error.startswith(
        "ScoreError" if rank else "ScheduleError: planning a round failed on another rank"
    )
    assert sum(p.numel() for p in compiled.parameters()) == DENSE

    compiled = model()
    if rank:
        from ecospa_fx.passes.remap import Transfer

        def fail(self: Transfer) -> None:
            raise ecospa_fx.RewriteError("no memory left")

        original, Transfer.commit = Transfer.commit, fail  # type: ignore[method-assign]
    before = [p.detach().clone() for p in compiled.parameters()]
    optimizer = AdamW(compiled.parameters(), lr=0.0, weight_decay=0.0)
    schedule = SparsitySchedule(compiled, optimizer, target_ratio=0.5, every=1, end=1)
    loss_of(compiled, batch(0)).backward()
    optimizer.step()
    assert "no memory left" in refused(schedule.step)
    if rank:
        Transfer.commit = original  # type: ignore[method-assign]
    assert all(map(torch.equal, before, compiled.parameters()))
    assert schedule.step() is not None
    assert same_on_all_ranks(compiled.kept_mask("0.bias").tolist())
    assert compiled.verify().within(1e-9)


CHECKS = (losses_of_two, unsynchronised_gradients, disagreement, failure_on_one)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Processes take seconds to start: all checks share two."""
    folder = tmp_path_factory.mktemp("ddp")
    compiled = model()
    losses, _, _ = train(compiled, compiled, range(STEPS), lambda x: x)
    torch.save(losses, folder / "losses.pt")
    return folder, run(CHECKS, folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_two_processes(check: Check, ran: tuple[Path, str]) -> None:
    folder, error = ran
    assert passed(check, folder), f"{check.__doc__}\n{error}"
