"""Shortcuts: when they may be taken."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.func import vmap

from ecospa_fx.linear import Linear
from ecospa_fx.shortcut import Shortcut, observed

LIMIT = Linear(-4, (("s1", 1),))
SHORTCUT = Shortcut(fx.Graph(), (0,), frozenset([LIMIT]), {"s1": (0, 1)})


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.ones(2, 4), True),
        (torch.ones(2, 4).bool(), True),
        (torch.ones(2, 4).long(), True),
        (torch.ones(2, 5), False),
        (torch.eye(2, 4), False),
        (torch.full((2, 4), 2), False),
        (torch.ones(2, 4, device="meta"), False),
        (torch.nn.Parameter(torch.ones(2, 4)), False),
    ],
)
def test_when_it_fits(mask: torch.Tensor, expected: bool) -> None:
    assert SHORTCUT.fits([mask]) is expected


def test_what_looks_on() -> None:
    seen = []
    vmap(lambda x: seen.append(observed()) or x)(torch.ones(2))
    assert [*seen, observed()] == [True, False]
