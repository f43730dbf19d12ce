"""Unfuse: selections along an axis that a view splits off move in front of the view."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from ecospa_fx.passes.propagate import target_name
from ecospa_fx.passes.unfuse import unfuse
from tests.models.traced import graph_of

Function = Callable[[Tensor], tuple[Tensor, ...]]
X = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0))


def whole(x: Tensor) -> tuple[Tensor, ...]:
    y = x.unflatten(-1, (3, 8))
    return y[..., 0, :] + y.sum(-2), y[..., 1, :]


CASES: dict[str, tuple[Function, bool]] = {
    "select": (lambda x: tuple(x.unflatten(-1, (3, 8))[..., i, :] for i in range(3)), True),
    "unbind": (lambda x: x.unflatten(-1, (3, 8)).unbind(-2), True),
    "behind a permutation": (
        lambda x: x.view(-1, x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0),
        True,
    ),
    "inner axis": (lambda x: x.unflatten(-1, (2, 3, 4)).unbind(-2), True),
    "slices": (lambda x: (x.unflatten(-1, (6, 4))[..., :4, :], x.unflatten(-1, (6, 4))[..., 4:, :]), True),
    "split": (lambda x: x.unflatten(-1, (6, 4)).split([4, 1, 1], -2), True),
    "chunk": (lambda x: x.unflatten(-1, (6, 4)).chunk(3, -2), True),
    "negative": (lambda x: (x.unflatten(-1, (3, 8))[..., -1, :], x.unflatten(-1, (3, 8))[..., -3, :]), True),
    "read whole": (whole, False),
    "last axis": (lambda x: x.unflatten(-1, (3, 8)).unbind(-1), True),
    "last axis, behind others": (
        lambda x: x.view(*x.shape[:2], 2, 4, 3).permute(4, 0, 2, 1, 3).unbind(0),
        True,
    ),
    "last axis, in front of others": (lambda x: x.mT.view(x.shape[0], 8, 3, -1).unbind(2), True),
    "ranges of the last axis": (lambda x: x.unflatten(-1, (4, 6)).split([2, 4], -1), False),
    "with a step": (lambda x: (x.unflatten(-1, (6, 4))[..., ::2, :],), False),
    "batch": (lambda x: x.unflatten(-1, (3, 8)).split(1, 1)[:1], False),
    "no view": (lambda x: x.chunk(3, -1), False),
}


@pytest.mark.parametrize(("function", "moves"), CASES.values(), ids=CASES)
def test_selections(function: Function, moves: bool) -> None:
    graph = graph_of(function, X, (0, 1))
    before = str(graph)
    assert unfuse(graph) is moves
    assert (str(graph) != before) is moves
    graph.lint()
    for size in (X, X[:3, :2]):
        found = fx.GraphModule(nn.Module(), graph)(size)
        assert all(torch.equal(a, b) for a, b in zip(found, function(size), strict=True))
    assert not unfuse(graph)


def test_what_is_taken_is_taken_of_the_flat_axis() -> None:
    graph = graph_of(CASES["behind a permutation"][0], X, (0, 1))
    unfuse(graph)
    slices = [n for n in graph.nodes if target_name(n) == "aten.slice.Tensor"]
    assert [n.args[1:] for n in slices] == [(2, 0, 8), (2, 8, 16), (2, 16, 24)]
    assert all(n.args[0].meta["val"].shape[2] == 24 for n in slices)
