"""Normalise: operators before and after, a line a case; what others still read must not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import ecospa_fx
from ecospa_fx import ops
from ecospa_fx.passes.normalise import is_drawn, normalise, writes, writes_through_views
from ecospa_fx.passes.propagate import target_name
from tests.models.traced import exported, graph_of

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def names(graph: fx.Graph) -> str:
    called = (target_name(n) for n in graph.nodes if n.op in ("call_function", "call_module"))
    return " ".join(n.removeprefix("aten.").split(".")[0] for n in called)


def unread(x: Tensor) -> Tensor:
    x.sin()
    return x.cos()


def checked(x: Tensor) -> Tensor:
    torch._check(x.shape[0] < 100)
    return x.cos()


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.sin()
    return x * y


def in_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = x @ x.transpose(0, 1)
    return y.float()


def nested(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.sin()
        with torch.enable_grad():
            y = y.cos()
    return x * y


def pair(x: Tensor) -> Tensor:
    with torch.no_grad():
        a, b = x.chunk(2, 1)
        a, b = b.sin(), a.cos()
    return x.narrow(1, 0, 3) * (a - b)


CASES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "as it is": (lambda x: torch.relu(x).sin(), "relu sin"),
    "view": (lambda x: x.view(-1, 2, 3), "sym_size reshape"),
    "reshape": (lambda x: x.reshape(-1, 3), "reshape"),
    "nobody reads it": (unread, "cos"),
    "assertion": (checked, "cos"),
    "no gradient": (without_gradient, "sin detach mul"),
    "autocast": (in_autocast, "_enter_autocast transpose matmul _exit_autocast to"),
    "regions in a region": (nested, "sin detach cos mul"),
    "several results": (pair, "chunk getitem getitem sin cos detach detach narrow sub mul"),
    "complex pairs": (lambda x: torch.view_as_complex(x.view(-1, 3, 2)).abs(), "reshape view_as_complex abs"),
}


@pytest.mark.parametrize(("function", "after"), CASES.values(), ids=CASES)
def test_operators(function: Callable[[Tensor], Any], after: str) -> None:
    module = exported(function, X)
    before = str(module.graph)
    graph = normalise(module)
    graph.lint()
    assert str(module.graph) == before
    assert " ".join(n for n in names(graph).split() if n != "sym_size") == after.replace("sym_size ", "")
    assert not [n for n in graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("function", [f for f, _ in CASES.values()], ids=CASES)
def test_values_and_gradients_stay(function: Callable[[Tensor], Any]) -> None:
    run = fx.GraphModule(nn.Module(), graph_of(function, X))
    results = []
    for call in (lambda x: run(x)[0], function):
        x = X.clone().requires_grad_()
        y = call(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, 3).sin()


def test_metadata_and_dynamic_sizes_stay() -> None:
    graph = graph_of(Viewed(), X)
    sin = next(n for n in graph.nodes if "sin" in str(n.target))
    assert "test_normalise.py" in sin.meta["stack_trace"]
    assert isinstance(sin.meta["val"].shape[0], torch.SymInt)
    assert fx.GraphModule(nn.Module(), graph)(torch.ones(9, 6))[0].shape == (9, 2, 3)


def test_strides_may_change() -> None:
    """A view of what became smaller may no longer be one: it is a reshape from here on."""
    run = fx.GraphModule(nn.Module(), graph_of(lambda x: x.view(-1, 3), X))
    assert torch.equal(run(X.T.contiguous().T)[0], X.reshape(-1, 3))


aten = torch.ops.aten
WRITES = {
    "relu": ([aten.relu.default], False, False),
    "relu_ of an input": ([aten.relu_.default], True, True),
    "relu_ of a result": ([aten.sin.default, aten.relu_.default], True, False),
    "relu_ of a view": ([aten.t.default, aten.relu_.default], True, True),
    "detach_": ([aten.detach_.default], False, False),
    "overwrite": ([ops.overwrite], False, False),
}


def chain(*functions: Any) -> fx.Node:
    node = fx.Graph().placeholder("x")
    for function in functions:
        node = node.graph.call_function(function, (node,))
    return node


@pytest.mark.parametrize(("functions", "changes", "shared"), WRITES.values(), ids=WRITES)
def test_what_writes_in_place(functions: list[Any], changes: bool, shared: bool) -> None:
    node = chain(*functions)
    assert writes(node) is changes
    assert writes_through_views(node.graph) is shared


def test_what_is_read_twice_is_shared() -> None:
    node = chain(aten.sin.default, aten.relu_.default)
    node.graph.call_function(aten.cos.default, node.args)
    assert writes_through_views(node.graph)


def assert_same_gradients(model: nn.Module) -> None:
    x = X.double()
    compiled = ecospa_fx.compile(model, args=(x,))
    found, expected = (torch.autograd.grad(m(x).square().sum(), [*m.parameters()]) for m in (compiled, model))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Apart(nn.Module):
    """A part of it does not learn, and something is written in place."""

    def __init__(self, rest: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.rest = nn.Linear(6, 6), rest

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        with torch.no_grad():
            part = y.sigmoid().sin()
        return self.rest(x, y, part)


def elsewhere(x: Tensor, y: Tensor, part: Tensor) -> Tensor:
    z = (y * part).clone()
    z[:, 0] = 0.0
    return z


def into_the_part(x: Tensor, y: Tensor, part: Tensor) -> Tensor:
    part += y.cos()
    return x + part


@pytest.mark.parametrize("rest", [elsewhere, into_the_part])
def test_parts_without_gradients_stay_so_beside_writes(
    rest: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    assert_same_gradients(Apart(rest).double())


class Peeked(nn.Module):
    """A region without gradients casts a tensor to the type that it has; the tensor is read again later."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        self.first, self.second, self.write = nn.Linear(6, 8), nn.Linear(8, 8), write

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        with torch.no_grad():
            order = (y.to(self.second.weight.dtype) @ y.T).argmax(-1)
        z = self.second(y)
        if self.write:
            z[:, :2] += y[:, :2]
        return z[order] + y


@pytest.mark.parametrize("write", [False, True])
def test_a_cast_that_changes_nothing_detaches_nothing(write: bool) -> None:
    assert_same_gradients(Peeked(write).double())


@pytest.mark.parametrize(("on", "draws"), [(False, False), (True, True)])
def test_a_dropout_that_is_off_draws_nothing(on: bool, draws: bool) -> None:
    graph = fx.Graph()
    node = graph.call_function(aten.dropout.default, (graph.placeholder("x"), 0.5, on))
    assert is_drawn(node) is draws
