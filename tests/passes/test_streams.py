"""Streams: what leaves a stream and is added to it again, and what only looks like it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecospa_fx.passes.propagate import propagate
from ecospa_fx.passes.streams import residual_components
from tests.models.tiny import Function, program

SHAPES = {"e": (8, 6), "a": (9, 8), "b": (8, 9), "h": (6, 8), "s": (8, 8), "c": (8,)}


def layer(m: object, y: Tensor) -> Tensor:
    return F.linear(F.linear(y, m.a).relu(), m.b)


def stream(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.e)
    return F.linear(y + layer(m, y), m.h)


def normed(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.e)
    return F.linear(y + layer(m, F.layer_norm(y, (8,))), m.h)


def post(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.e)
    return F.linear(F.layer_norm(y + layer(m, y), (8,)), m.h)


def turned(m: object, x: Tensor) -> Tensor:
    """A layer whose matrices are turned before they multiply."""
    y = x @ m.e.T
    return (y + (y @ m.a.T).relu() @ m.b.T) @ m.h.T


def gate(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.e)
    return F.linear(y * torch.sigmoid(y), m.h)


def rotary(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.e)
    a, b = y.chunk(2, -1)
    return F.linear(y + torch.cat((-b, a), -1), m.h)


def adapter(m: object, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.e) + F.linear(F.linear(x, m.a[:, :6]), m.b), m.h)


def twice(m: object, x: Tensor) -> Tensor:
    """The same layer twice, without a sum."""
    return F.linear(layer(m, layer(m, F.linear(x, m.e))), m.h)


def single(m: object, x: Tensor) -> Tensor:
    """A layer of one matrix, added to its input."""
    y = F.linear(x, m.e)
    return F.linear(y + F.linear(y, m.s).relu(), m.h)


def highway(m: object, x: Tensor) -> Tensor:
    """A gate of full width shares out between a layer and what goes round it."""
    y = F.linear(x, m.e)
    share = torch.sigmoid(F.linear(y, m.s))
    return F.linear(y * (1 - share) + layer(m, y) * share, m.h)


def scan(m: object, x: Tensor) -> Tensor:
    """A recurrence whose step sizes come from its own inputs (Gu and Dao, 2023)."""
    y = F.linear(x, m.e)
    step = layer(m, y).sigmoid()
    state = torch.zeros_like(y[..., 0, :])
    for t in range(3):
        state = torch.exp(-step[..., t, :] * m.c.exp()) * state + step[..., t, :] * y[..., t, :]
    return F.linear(state + y[..., 2, :] * m.c, m.h)


def values(m: object, x: Tensor) -> Tensor:
    """Attention twice; the second adds the first one's values to its own (Zhou et al., 2024)."""
    weights = (x @ x.mT).softmax(-1)[:, None]
    first = F.linear(x, m.e).unflatten(-1, (2, 4)).transpose(1, 2)
    y = x + F.linear((weights @ first).transpose(1, 2).flatten(-2), m.h)
    second = F.linear(y, m.e).unflatten(-1, (2, 4)).transpose(1, 2) + first
    return F.linear((weights @ second).transpose(1, 2).flatten(-2), m.h)


CASES = {
    "residual": (stream, True),
    "pre-norm": (normed, True),
    "post-norm": (post, True),
    "one matrix": (single, True),
    "turned matrices": (turned, True),
    "gate": (gate, False),
    "rotary": (rotary, False),
    "adapter": (adapter, False),
    "shared layer": (twice, False),
    "highway": (highway, True),
    "scan": (scan, False),
    "values of the first layer": (values, False),
}


@pytest.mark.parametrize(("function", "residual"), CASES.values(), ids=CASES)
def test_what_is_a_residual_stream(function: Function, residual: bool) -> None:
    analysis = propagate(program(function, **SHAPES))
    wide = set(analysis.partition.component[analysis.labels["e"][0]].tolist())
    assert set(residual_components(analysis).tolist()) == (wide if residual else set())
