"""fully_shard (FSDP2) on two gloo processes: the losses of one process, through all rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import SGD, Optimizer

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule
from ecospa_fx.cut import ParameterCut
from ecospa_fx.fsdp import Smaller
from tests.distributed.nets import Net, adamw, batch, mine, model, sharded, stepped, trained
from tests.distributed.processes import RANKS, Check, passed, refused, run, same_on_all_ranks

STEPS = 8


def train(compiled: CompiledModel, optimizer: Optimizer, steps: range, part: Any, **more: Any) -> list[float]:
    schedule = SparsitySchedule(compiled, optimizer, **{"target_ratio": 0.5, "every": 2, "end": 6, **more})
    losses = trained(compiled, optimizer, schedule, steps, part)
    assert len(schedule.reports) == 3
    return losses


def full(compiled: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in compiled.named_parameters()}


def losses_of_one_process(folder: Path) -> None:
    """A schedule through three rounds, with AdamW; parameters keep their identity and their hooks."""
    compiled = sharded()
    optimizer = adamw(compiled)
    held = list(compiled.parameters())
    losses = train(compiled, optimizer, range(STEPS), mine)
    expected = torch.load(folder / "losses.pt")
    torch.testing.assert_close(losses, expected["losses"], rtol=1e-9, atol=0)
    assert all(p is q for p, q in zip(held, optimizer.param_groups[0]["params"], strict=True))
    assert {id(p) for p in compiled.parameters()} == {id(p) for p in held}
    for name, value in full(compiled).items():
        torch.testing.assert_close(value, expected["parameters"][name], rtol=1e-9, atol=1e-12)
    assert all(isinstance(p, DTensor) for p in compiled.parameters())
    for p, state in optimizer.state.items():
        assert state["exp_avg"].shape == p.shape
        assert state["exp_avg"].placements == p.placements == (Shard(0),)
    assert same_on_all_ranks({n: compiled.kept_mask(n).tolist() for n, _ in compiled.named_parameters()})
    assert compiled.verify().within(1e-9)


def options_survive(folder: Path) -> None:
    """What stays whole between forward and backward, parts along another axis, and the whole as one unit."""
    expected = torch.load(folder / "losses.pt")["losses"]

    def across(p: nn.Parameter) -> Shard | None:
        return Shard(1) if p.shape[-1] == 10 and p.dim() == 2 else None  # the axis that stays as it is

    alone = model()
    fully_shard(alone, mesh=init_device_mesh("cpu", (RANKS,)))
    grid = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("copies", "parts"))
    ways: tuple[dict[str, Any], ...] = (
        {"mesh": grid},
        {"reshard_after_forward": False},
        {"reshard_after_forward": True},
        {"shard_placement_fn": across},
    )
    for compiled in (alone, *(sharded(**options) for options in ways)):
        losses = train(compiled, adamw(compiled), range(STEPS), mine)
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)


def sparsify_between_steps(folder: Path) -> None:
    """``sparsify`` itself, with gradients in place: they follow, and so does momentum."""
    compiled, plain = sharded(), model()
    optimizers = [SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (compiled, plain)]
    for round_ in range(2):
        stepped(compiled, optimizers[0], mine(batch(round_)))
        stepped(plain, optimizers[1], batch(round_))
        compiled(mine(batch(7))).square().mean().backward()
        plain(batch(7)).square().mean().backward()
        with torch.no_grad():
            compiled(mine(batch(3)))  # leaves the root's parameters whole
        pairs = zip((compiled, plain), optimizers, strict=True)
        reports = [m.sparsify(ratio=0.3, optimizer=o) for m, o in pairs]
        assert reports[0].params_after == reports[1].params_after
        for name, p in plain.named_parameters():
            assert torch.equal(compiled.kept_mask(name), plain.kept_mask(name))
            found = dict(compiled.named_parameters())[name].grad
            assert found is not None
            torch.testing.assert_close(found.full_tensor(), p.grad, rtol=1e-9, atol=1e-12)
        for o in optimizers:
            o.step()
            o.zero_grad()
    for name, value in full(compiled).items():
        torch.testing.assert_close(value, plain.get_parameter(name).detach(), rtol=1e-9, atol=1e-12)


@contextlib.contextmanager
def failing(owner: Any, name: str, fails: bool) -> Iterator[None]:
    """The fourth call of a method fails."""
    original, calls = getattr(owner, name), []

    def method(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4 and fails:
            raise ecospa_fx.RewriteError("no memory left")
        return original(*args)

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)


def rolled_back(folder: Path) -> None:
    """What fails on one rank fails on both; everything is as before, and training goes on."""
    compiled = sharded()
    optimizer = adamw(compiled)
    stepped(compiled, optimizer, mine(batch(0)))
    before = {n: v.clone() for n, v in full(compiled).items()}
    compiled(mine(batch(1))).square().mean().backward()
    plan = compiled.plan(ratio=0.5)
    for owner, name, everywhere in ((ParameterCut, "apply", False), (Smaller, "install", True)):
        with failing(owner, name, everywhere or bool(dist.get_rank())):
            assert "no memory left" in refused(lambda: compiled.apply(plan, optimizer))
        assert same_on_all_ranks(True)
        for parameter, value in full(compiled).items():
            assert torch.equal(value, before[parameter]), parameter
        assert not compiled.removal.removed
        assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    compiled.apply(plan, optimizer)
    optimizer.step()
    stepped(compiled, optimizer, mine(batch(2)))
    assert compiled.verify().within(1e-9)


def calls_captured_when_sharded(folder: Path) -> None:
    """A new signature, before and after a round, and one that is captured in the first place."""
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(Net().double())
    expected = Net.forward(model().source, batch(0))
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in compiled.called_blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(compiled, mesh=mesh)
    torch.testing.assert_close(compiled(batch(0)), expected, rtol=1e-9, atol=1e-12)
    compiled(batch(0)).square().mean().backward()
    compiled.sparsify(ratio=0.4)
    compiled.eval()
    compiled(batch(1))
    assert len(list(compiled.signatures)) == 2
    assert compiled.verify(batch(2)).within(1e-9)


def mixed_precision(folder: Path) -> None:
    """The policy computes in another type than parameters rest in, before and after a round."""
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float64)
    compiled = sharded(mp_policy=policy)
    losses = train(compiled, adamw(compiled), range(STEPS), mine)
    expected = torch.load(folder / "losses.pt")["losses"]
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-5)
    assert {p.dtype for p in compiled.parameters()} == {torch.float64}
    assert compiled(batch(0)).dtype is torch.float32


def refusals(folder: Path) -> None:
    """What cannot follow is refused before anything changes."""
    compiled = sharded()
    optimizer = SGD(compiled.parameters(), lr=0.1)
    stepped(compiled, optimizer, mine(batch(0)))
    for p in compiled.parameters():
        optimizer.state[p]["row_mean"] = torch.zeros(p.shape[0] + 1)
    compiled(mine(batch(0))).sum().backward()
    assert "which is sharded" in refused(lambda: compiled.sparsify(ratio=0.5, optimizer=optimizer))
    assert not compiled.removal.removed
    other = model()
    fully_shard(other.outlet, mesh=init_device_mesh("cpu", (RANKS,)))
    error = refused(lambda: SparsitySchedule(other, adamw(other), target_ratio=0.5, every=1, end=1))
    assert "fully_shard was called on 'outlet', which the compiled model does not call" in error
    error = refused(lambda: other(batch(0)))
    assert "fully_shard was called on 'outlet', which the compiled model does not call" in error
    error = refused(lambda: other.eval()(batch(0)))
    assert "fully_shard was called on 'outlet', which the compiled model does not call" in error
    first = fully_shard(Net().double(), mesh=init_device_mesh("cpu", (RANKS,)))
    assert "'Net', which the compiled" in refused(lambda: ecospa_fx.compile(first, args=(batch(0),)))
    waiting = sharded()
    stepped(waiting, adamw(waiting), mine(batch(0)))
    waiting.set_requires_gradient_sync(False)
    waiting(mine(batch(0))).sum().backward()
    error = refused(lambda: waiting.sparsify(ratio=0.5, score="magnitude", allocation="uniform"))
    assert "gradients that ranks have not added up yet" in error
    across = sharded(shard_placement_fn=lambda p: Shard(1) if p.shape in [(10, 14), (10, 18)] else None)
    across(mine(batch(0))).sum().backward()
    one_less = sum(p.numel() for p in across.parameters()) - 21
    assert "pass round_to=2" in refused(lambda: across.sparsify(target_params=one_less))
    assert across.sparsify(target_params=one_less - 21, round_to=2).params_after < one_less


CHECKS = (
    losses_of_one_process,
    options_survive,
    sparsify_between_steps,
    rolled_back,
    calls_captured_when_sharded,
    mixed_precision,
    refusals,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("fsdp")
    compiled = model()
    losses = train(compiled, adamw(compiled), range(STEPS), lambda x: x)
    torch.save({"losses": losses, "parameters": dict(compiled.named_parameters())}, folder / "losses.pt")
    return folder, run(CHECKS, folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_two_processes(check: Check, ran: tuple[Path, str]) -> None:
    folder, error = ran
    assert passed(check, folder), f"{check.__doc__}\n{error}"
