"""Site: gathers that differ from head to head where batch and heads share an axis of free size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import ecospa_fx
from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.site import Free
from ecospa_fx.testing import random_removal
from tests.models.masked import MaskedModel, assert_same
from tests.models.tiny import Tiny

HEADS, DIM = 3, 4
FIRST = np.array([[0, 1], [2, 3], [4, 5]])
"""Labels of three heads."""


def free(rows: np.ndarray) -> Free:
    return Free(Value(rows.shape, (True, False), (LabelArray(rows),)), {})


@pytest.mark.parametrize(
    ("rows", "places", "each"),
    [
        (np.concatenate([FIRST, FIRST]), [0, 1, 2], False),
        (FIRST.repeat(2, 0), [0, 2, 4], True),
        (np.concatenate([FIRST.repeat(2, 0)] * 5), [0, 1, 2, 3, 4, 5], False),
    ],
    ids=["batch, heads", "heads, batch", "batch, heads of groups"],
)
def test_the_shortest_piece_that_repeats(rows: np.ndarray, places: list[int], each: bool) -> None:
    found, by_entry = free(rows).piece(rows[:, :1], 0)
    assert (found.tolist(), by_entry) == (places, each)


def test_equal_positions_do_not_hide_the_heads() -> None:
    """Positions of heads 0 and 2 may agree by chance; labels never do."""
    rows = np.arange(8).reshape(4, 2).repeat(3, 0)
    at = np.array([0, 1, 0, 1]).repeat(3)[:, None]
    assert free(rows).piece(at, 0)[0].tolist() == [0, 3, 6, 9]


def test_nothing_repeats() -> None:
    with pytest.raises(RewriteError, match="neither first nor last"):
        free(FIRST).piece(FIRST[:, :1], 0)


def batch_first(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, DIM)).transpose(1, 2).flatten(0, 1)


def heads_first(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, DIM)).permute(2, 0, 1, 3).flatten(0, 1)


@pytest.mark.parametrize("merged", [batch_first, heads_first])
def test_a_table_meets_heads_that_share_an_axis_with_the_batch(merged: Callable[[Tensor], Tensor]) -> None:
    def function(m: object, x: Tensor) -> Tensor:
        q, k = (merged(x @ w) for w in (m.q, m.k))  # type: ignore[attr-defined]
        scales = torch.linspace(1, 2, DIM, dtype=x.dtype)
        none = q.new_zeros(q.shape[0], 1, DIM)
        return (q * scales) @ torch.cat([k, none], 1).mT

    model = Tiny(function, q=(6, HEADS * DIM), k=(6, HEADS * DIM))
    masked, compiled = MaskedModel(model), ecospa_fx.compile(model, args=(torch.randn(2, 5, 6).double(),))
    compiled.apply(random_removal(compiled, 0.5))
    for batch in (1, 4, 6):
        x = torch.randn(batch, 4, 6, dtype=torch.float64)
        assert_same(compiled, masked, lambda net, x=x: net(x))
