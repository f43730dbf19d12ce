"""Unview: the base after a view of it has got new values, beside a write in eager mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from ecospa_fx.passes.unview import UnwritableError, unview

aten = torch.ops.aten
X = torch.arange(24.0).view(2, 3, 4)
Step = Callable[[fx.Graph, fx.Node], fx.Node]


def op(target: Callable[..., Tensor], *args: object) -> Step:
    return lambda graph, x: graph.call_function(target, (x, *args))  # type: ignore[arg-type]


VIEWS = {
    "select": op(aten.select.int, 1, 2),
    "slice": op(aten.slice.Tensor, 2, 1, 3),
    "steps": op(aten.slice.Tensor, -1, 0, 4, 2),
    "diagonal": op(aten.diagonal.default, 0, 1, 2),
    "transpose": op(aten.transpose.int, 0, -1),
    "permute": op(aten.permute.default, [2, 0, 1]),
    "permute from the end": op(aten.permute.default, [-1, 0, -2]),
    "unsqueeze": op(aten.unsqueeze.default, -1),
    "squeeze of more": op(aten.squeeze.dim, 1),
    "reshape": op(aten.reshape.default, [6, -1]),
    "flatten": op(aten.flatten.using_ints, 1),
    "detach": op(aten.detach.default),
    "contiguous": op(aten.contiguous.default),
}


def bases(view: Step) -> tuple[Tensor, Tensor]:
    """What the new nodes compute, and what a write leaves."""
    graph = fx.Graph()
    base, new = graph.placeholder("x"), graph.placeholder("new")
    base.meta["val"] = X
    node = view(graph, base)
    base_now = X.clone()
    shown = node.target(base_now, *node.args[1:])  # type: ignore[operator]
    node.meta["val"] = shown
    value = -shown.clone() - 1
    graph.output(unview(node, base, new))
    graph.eliminate_dead_code()
    shown.copy_(value)
    return fx.GraphModule(torch.nn.Module(), graph)(X, value), base_now


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_base_is_as_if_it_had_been_written_to(view: Step) -> None:
    found, expected = bases(view)
    torch.testing.assert_close(found, expected)


def test_an_axis_of_one_comes_back() -> None:
    graph = fx.Graph()
    base, new = graph.placeholder("x"), graph.placeholder("new")
    base.meta["val"] = X[:, :1]
    graph.output(unview(op(aten.squeeze.dim, 1)(graph, base), base, new))
    assert fx.GraphModule(torch.nn.Module(), graph)(X[:, :1], X[:, 0]).shape == (2, 1, 4)


@pytest.mark.parametrize("view", [op(aten.expand.default, [2, 3, 4]), op(aten.to.dtype, torch.int64)])
def test_no_way_back(view: Step) -> None:
    with pytest.raises(UnwritableError):
        bases(view)
