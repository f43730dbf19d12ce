"""The transaction of remap: all of it, or nothing."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import RewriteError
from ecospa_fx.exchange import exchange
from ecospa_fx.passes import remap
from tests.models.cutting import (
    ENTRYWISE,
    HIDDEN,
    MATRIXWISE,
    UNITS,
    WIDTH,
    Build,
    Network,
    cut,
    everything,
    same,
    train,
)

o = torch.optim


def test_prepare_changes_nothing() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    transfer = cut(model, optimizer)
    assert same(everything(model, optimizer), before)
    transfer.rollback()
    assert same(everything(model, optimizer), before)


@pytest.mark.parametrize("build", [*ENTRYWISE, *MATRIXWISE])
def test_rollback_restores_every_bit(build: Build) -> None:
    model, seen = Network(), []
    optimizer = build(list(model.parameters()))
    train(model, optimizer, 2)
    twin, reference = copy.deepcopy((model, optimizer))
    model.up.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    before = everything(model, optimizer)
    transfer = cut(model, optimizer)
    transfer.commit()
    assert not all(a.shape == b.shape for a, b in zip(everything(model, optimizer), before, strict=True))
    transfer.rollback()
    assert same(everything(model, optimizer), before)
    train(model, optimizer, 2)
    train(twin, reference, 2)
    assert same(everything(model, optimizer), everything(twin, reference))
    assert seen == [(HIDDEN, WIDTH)] * 2


def test_rollback_with_a_live_graph() -> None:
    model = Network()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).pow(2).sum(), model.up.weight)[0]
    loss = model(x).pow(2).sum()
    transfer = cut(model)
    transfer.commit()
    between = model(x).pow(2).sum()
    transfer.rollback()
    loss.backward()
    assert torch.equal(model.up.weight.grad, expected)
    model.zero_grad()
    between.backward()
    assert model.up.weight.grad[UNITS].any()
    assert not model.up.weight.grad[~UNITS].any()


def test_commit_after_rollback() -> None:
    model = Network()
    transfer = cut(model)
    expected = model.up.weight[UNITS].detach()
    for _ in range(2):
        transfer.commit()
        assert torch.equal(model.up.weight, expected)
        transfer.rollback()
    transfer.commit()
    with pytest.raises(RewriteError):
        transfer.commit()
    assert torch.equal(model.up.weight, expected)


def test_any_failure_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    optimizer = o.Adam(model.parameters(), amsgrad=True)
    train(model, optimizer, 2)
    before, split = everything(model, optimizer), ParameterCut.split
    failures = 0
    for last in range(100):
        calls = iter(range(last))

        def failing(self: ParameterCut, tensor: torch.Tensor, calls: Iterator[int] = calls) -> object:
            if next(calls, None) is None:
                raise MemoryError
            return split(self, tensor)

        monkeypatch.setattr(ParameterCut, "split", failing)
        try:
            cut(model, optimizer).commit()
        except MemoryError:
            failures += 1
            assert same(everything(model, optimizer), before)
        else:
            break
    assert failures == 3 * (2 + 3)  # three parameters, their gradients, three moments


@pytest.mark.parametrize("done", [True, False])
def test_an_interrupt_changes_nothing(monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    model, seen = Network(), []
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    model.up.bias.register_hook(lambda gradient: seen.append(gradient.shape))
    before = everything(model, optimizer)

    def interrupted(param: nn.Parameter, *args: object) -> object:
        if param is not model.up.bias or param.shape != (HIDDEN,):
            return exchange(param, *args)
        if done:
            exchange(param, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(remap, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut(model, optimizer).commit()
    assert same(everything(model, optimizer), before)
    train(model, optimizer, 1)
    assert seen == [(HIDDEN,)]


def test_a_parameter_that_torch_holds_on_to_changes_nothing() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    reference = torch._C._WeakTensorRef(model.down.weight)
    with pytest.raises(RewriteError, match=r"'down.weight' cannot be cut in place"):
        cut(model, optimizer).commit()
    assert not reference.expired()
    assert same(everything(model, optimizer), before)


def test_former_tensors_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    split, alive, most = ParameterCut.split, [], 0

    def watched(self: ParameterCut, tensor: torch.Tensor) -> object:
        nonlocal most
        alive.append(StorageWeakRef(tensor.untyped_storage()))
        most = max(most, sum(not reference.expired() for reference in alive))
        return split(self, tensor)

    transfer = cut(model, optimizer)
    monkeypatch.setattr(ParameterCut, "split", watched)
    transfer.commit()
    assert len(alive) == 3 * 4
    assert most == 2  # a parameter and its gradient
    assert all(reference.expired() for reference in alive)
