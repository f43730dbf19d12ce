"""Turn: heads that lie innermost come to the front; what does not end in heads stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

import ecospa_fx
from ecospa_fx.passes.turn import turn
from ecospa_fx.testing import random_removal
from tests.models.blocks import found_units
from tests.models.masked import MaskedModel, assert_same
from tests.models.tiny import Tiny
from tests.models.traced import graph_of
from tests.passes.test_unfuse import X

Function = Callable[[Tensor], tuple[Tensor, ...]]


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (8, 3)).permute(0, 3, 1, 2)


def part(x: Tensor) -> tuple[Tensor, ...]:
    """Parts, and in each of them dims in front of heads."""
    q, k = x.view(*x.shape[:2], 4, 2, 3).permute(3, 0, 4, 1, 2).unbind(0)
    return (q @ k.mT,)


def score(x: Tensor) -> tuple[Tensor, ...]:
    y = x.unflatten(-1, (8, 3))
    return (torch.einsum("bidh,bjdh->bhij", y, y),)


def patches(x: Tensor) -> tuple[Tensor, ...]:
    """No head is left: what was split is merged in another order."""
    return (x.unflatten(-1, (8, 3)).transpose(-1, -2).reshape(x.shape),)


def both_ways(x: Tensor) -> tuple[Tensor, ...]:
    y = x.unflatten(-1, (8, 3))
    return y.relu(), y.permute(0, 3, 1, 2).relu()


CASES: dict[str, tuple[Function, bool]] = {
    "permuted": (lambda x: (heads(x) @ heads(x).mT,), True),
    "batch and heads in one axis": (lambda x: (heads(x).flatten(0, 1).relu(),), True),
    "parts": (part, True),
    "einsum": (score, True),
    "parts in front": (
        lambda x: x.view(*x.shape[:2], 4, 3, 2).permute(4, 0, 2, 1, 3).relu().unbind(0),
        False,
    ),
    "einsum over heads": (lambda x: (torch.einsum("bidh->bid", x.unflatten(-1, (8, 3))),), False),
    "heads in front": (lambda x: (x.unflatten(-1, (3, 8)).transpose(1, 2) @ x.new_ones(8, 2),), False),
    "patches": (patches, False),
    "read both ways": (both_ways, False),
}


@pytest.mark.parametrize(("function", "turns"), CASES.values(), ids=CASES)
def test_what_is_turned(function: Function, turns: bool) -> None:
    graph = graph_of(function, X, (0, 1))
    before = str(graph)
    assert turn(graph) is turns
    assert (str(graph) != before) is turns
    graph.lint()
    for x in (X, X[:3, :2]):
        found = fx.GraphModule(torch.nn.Module(), graph)(x)
        assert all(torch.equal(a, b) for a, b in zip(found, function(x), strict=True))
    assert not turn(graph)


def test_every_head_keeps_what_it_likes() -> None:
    def function(m: object, x: Tensor) -> Tensor:
        y = (x @ m.qkv).view(*x.shape[:2], 4, 3, 2).permute(3, 0, 4, 1, 2)  # type: ignore[attr-defined]
        y = F.scaled_dot_product_attention(*y.unbind(0))
        return y.transpose(1, 2).flatten(2) @ m.o  # type: ignore[attr-defined]

    model = Tiny(function, qkv=(6, 24), o=(8, 6))
    masked = MaskedModel(model)
    compiled = ecospa_fx.compile(model, args=(torch.randn(2, 5, 6).double(),))
    assert found_units(compiled) == {"qk": 8, "vo": 8}
    compiled.apply(random_removal(compiled, 0.5))
    assert_same(compiled, masked, lambda net: net(torch.linspace(-1, 1, 72).double().view(3, 4, 6)))
