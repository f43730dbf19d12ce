"""Roles: learnt queries, absorbed matrices of heads, and what only looks like them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ecospa_fx
from ecospa_fx.testing import assert_equals_masked
from tests.models.tiny import Function, Tiny, X

SHAPES = {
    "e": (8, 6), "q": (3, 4), "k": (4, 8), "v": (5, 8), "o": (6, 5), "s": (1, 4), "r": (3, 4), "h": (6, 15),
    "wq": (8, 8), "up": (2, 4, 6), "uv": (2, 5, 6), "c": (6, 8), "ho": (6, 10),
}  # fmt: skip


def pooled(m: Any, x: Tensor) -> Tensor:
    """Attention pooling: learnt queries."""
    y = F.linear(x, m.e).relu()
    weights = (m.q @ F.linear(y, m.k).transpose(-1, -2) * 0.5).masked_fill(x[:, None, :, 0] > 2, -1e9)
    return F.linear(weights.softmax(-1) @ F.linear(y, m.v), m.o)


def one_query(m: Any, x: Tensor) -> Tensor:
    """A score for each place, over which the softmax runs."""
    y = F.linear(x, m.e).relu()
    weights = F.linear(F.linear(y, m.k), m.s).softmax(1)
    return F.linear((weights * F.linear(y, m.v)).sum(1), m.o)


def routed(m: Any, x: Tensor) -> Tensor:
    """A softmax over what the weight has brought is a choice, not attention."""
    y = F.linear(x, m.e).relu()
    return F.linear(y, m.k) @ m.r.T @ x.new_ones(3, 1) + F.linear(F.linear(y, m.k), m.q).softmax(-1)


def absorbed(m: Any, x: Tensor) -> Tensor:
    """Latent attention whose keys and values are never written out."""
    y = F.linear(x, m.e).relu()
    c = F.linear(y, m.c)
    q = torch.einsum("bthd,hdc->bthc", F.linear(y, m.wq).unflatten(-1, (2, 4)), m.up)
    mixed = torch.einsum("bhts,bsc->bthc", torch.einsum("bthc,bsc->bhts", q, c).softmax(-1), c)
    return F.linear(torch.einsum("bthc,hvc->bthv", mixed, m.uv).flatten(2), m.ho)


def column(m: Any, x: Tensor) -> Tensor:
    """A sum over an axis that a view has added."""
    y = F.linear(x, m.e).relu()
    upright = y.view(*y.shape, 1)
    return F.linear((upright * upright).sum(-1), m.h[:, :8])


def by_hand(m: Any, x: Tensor) -> Tensor:
    """Scores as products entry by entry, and their sums."""
    y = F.linear(x, m.e).relu()
    q, k = F.linear(y, m.k).relu(), F.linear(y, m.k[:, :8]) * 2
    weights = (q[:, :, None] * k[:, None]).sum(-1).softmax(-1)
    return F.linear(weights @ F.linear(y, m.v), m.o)


@pytest.mark.parametrize(
    ("forward", "units"),
    [
        (column, {"ffn": 8}),
        (by_hand, {"ffn": 8, "qk": 4, "vo": 5}),
        (pooled, {"ffn": 8, "qk": 4, "vo": 5}),
        (one_query, {"ffn": 8, "qk": 4, "vo": 5}),
        (routed, {"ffn": 8, "lowrank": 4}),
        (absorbed, {"ffn": 8, "qk": 10, "vo": 5}),
    ],
)
def test_kinds(forward: Function, units: dict[str, int]) -> None:
    compiled = ecospa_fx.compile(Tiny(forward, **SHAPES), args=(X,))
    found: dict[str, int] = {}
    for couple in compiled.couplings:
        found[couple.kind] = found.get(couple.kind, 0) + couple.num_units
    assert found == units
    assert_equals_masked(compiled, torch.randn(3, 4, 6, dtype=torch.float64))
