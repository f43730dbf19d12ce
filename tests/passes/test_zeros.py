"""Zeros: memories that begin empty, and zeros that do not stay so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ecospa_fx
from ecospa_fx.passes.zeros import without_zeros
from ecospa_fx.testing import assert_equals_masked
from tests.models.tiny import Function, Tiny
from tests.models.traced import graph_of

QKV = {"q": (6, 5), "k": (6, 5), "v": (4, 5), "o": (5, 4)}
X = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def delta(m: Any, x: Tensor) -> Tensor:
    """A memory that is corrected by what it holds already (DeltaNet)."""
    q, k, v = F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)
    memory, out = x.new_zeros(x.shape[0], 6, 4), []
    for t in range(3):
        old = torch.einsum("bd,bde->be", k[:, t], memory)
        memory = memory + torch.einsum("bd,be->bde", k[:, t], v[:, t] - old)
        out.append(torch.einsum("bd,bde->be", q[:, t], memory))
    return F.linear(torch.stack(out, 1), m.o)


def decayed(m: Any, x: Tensor) -> Tensor:
    """A memory that fades (gated linear attention)."""
    q, k, v = F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)
    memory, out = torch.zeros(x.shape[0], 6, 4, dtype=x.dtype), []
    for t in range(3):
        memory = memory * k[:, t].sigmoid()[..., None] + k[:, t, :, None] * v[:, t, None]
        out.append((q[:, t, None] @ memory).squeeze(1))
    return F.linear(torch.stack(out, 1), m.o)


def read_first(m: Any, x: Tensor) -> Tensor:
    """A memory that is read before anything has been written."""
    q, k, v = F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)
    memory, out = x.new_zeros(x.shape[0], 6, 4), []
    for t in range(3):
        out.append(torch.einsum("bd,bde->be", q[:, t], memory))
        memory = memory + torch.einsum("bd,be->bde", k[:, t], v[:, t])
    return F.linear(torch.stack(out, 1), m.o)


def summed(m: Any, x: Tensor) -> Tensor:
    """Reads are products entry by entry, and sums."""
    q, k, v = F.linear(x, m.q), F.linear(x, m.k), F.linear(x, m.v)
    memory, out = x.new_zeros(x.shape[0], 6, 4), []
    for t in range(3):
        old = (memory * k[:, t, :, None]).sum(-2)
        memory = memory + k[:, t, :, None] * (v[:, t] - old)[:, None]
        out.append((memory * q[:, t, :, None]).sum(-2))
    return F.linear(torch.stack(out, 1), m.o)


@pytest.mark.parametrize("forward", [delta, decayed, read_first, summed])
def test_memories_that_begin_empty_freeze_nothing(forward: Function) -> None:
    compiled = ecospa_fx.compile(Tiny(forward, **QKV), args=(X,))
    assert {c.kind: c.num_units for c in compiled.couplings} == {"qk": 6, "vo": 4}
    assert_equals_masked(compiled, torch.randn(2, 3, 5, dtype=torch.float64))


def written(m: Any, x: Tensor) -> Tensor:
    hidden = x.new_zeros(x.shape[0], x.shape[1], 4)
    hidden[:, 0] = F.linear(x[:, 0], m.v)
    return F.linear(F.linear(x, m.v) + hidden, m.o) + x


def passed_on(m: Any, x: Tensor) -> Tensor:
    """The only term that is left is written to later."""
    hidden = F.linear(x, m.v)
    total = hidden + torch.zeros_like(hidden)
    total[:, 0] = 1
    return F.linear(total * hidden, m.o)


@pytest.mark.parametrize("forward", [written, passed_on])
def test_what_is_written_to_is_not_zero(forward: Function) -> None:
    compiled = ecospa_fx.compile(Tiny(forward, **QKV), args=(X,))
    assert_equals_masked(compiled, torch.randn(2, 3, 5, dtype=torch.float64))


def test_parameters_that_meet_zeros_only_are_trained_by_zeros() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, m.v) + F.linear(x, m.q) @ x.new_zeros(6, 4), m.o)

    compiled = ecospa_fx.compile(Tiny(forward, **QKV), args=(X,))
    assert_equals_masked(compiled, X)


def test_it_says_whether_anything_changed() -> None:
    graph = graph_of(lambda x: x + x @ x.new_zeros(5, 5), X)
    assert without_zeros(graph)
    assert not without_zeros(graph)


def test_a_product_whose_sizes_only_integers_tell_stays() -> None:
    graph = graph_of(lambda x: x * torch.zeros(1), torch.ones(3, 5, dtype=torch.long))
    before = str(graph)
    assert not without_zeros(graph)
    assert str(graph) == before


def test_sizes_that_are_added_are_no_terms() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        padded = F.pad(F.linear(x, m.v), (0, 0, 0, (4 - x.shape[1] % 4) % 4 + 1))
        return F.linear(padded + x.new_zeros(x.shape[0], 1, 5) @ m.v.mT, m.o)

    compiled = ecospa_fx.compile(Tiny(forward, **QKV), args=(X,))
    assert_equals_masked(compiled, X)


def test_a_size_that_is_known_is_that_of_the_sum() -> None:
    graph = graph_of(lambda x: x.new_zeros(4, 7) @ x.new_ones(7, 5) + x[:4], torch.ones(9, 5))
    given = next(n for n in graph.nodes if n.op == "placeholder").meta["val"]
    total = next(n for n in graph.nodes if n.target is torch.ops.aten.add.Tensor)
    length = given.shape[0] // (given.shape[0] // 4)  # four, which no rule of symbols tells
    with given.fake_mode:
        total.meta["val"] = given.new_empty(length, 5)
    assert without_zeros(graph)
    assert total not in graph.nodes
