"""Reads: loops that read a value in each round are followed while they are short."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.passes.reads import FewReads, UnrolledError


class Steps(nn.Module):
    """Goes on until a sum is large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.double()

    def forward(self, x: Tensor, most: Tensor) -> Tensor:
        for step in range(200):
            x = x + self.down(torch.relu(self.up(x)))
            if most.sum() <= step:
                break
        return x


X = torch.ones(3, 4, dtype=torch.float64)


def test_a_short_loop_is_followed() -> None:
    compiled = ecospa_fx.compile(Steps(), args=(X, torch.full((9,), 0)))
    assert compiled.verify(X, torch.full((9,), 0)).within(1e-9)


def test_a_long_loop_is_refused_with_its_line() -> None:
    with pytest.raises(UnrolledError, match=r"more than 64 values .*\n  at .*test_reads.py:\d+: if most.sum"):
        ecospa_fx.compile(Steps(), args=(X, torch.full((9,), 30.0)))


def test_many_modules_may_read_a_value_each() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with FewReads():
        nn.Sequential(*(Layer() for _ in range(99)))(X)
