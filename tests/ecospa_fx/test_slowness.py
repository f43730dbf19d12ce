"""Slowness: a note for each kind of shape that is slow, and none for those that are not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.plan import CoupleLoss, Plan, PlanSettings
from ecospa_fx.removal import Removal
from ecospa_fx.slowness import slow_shapes, uneven


def heads(qk: tuple[int, int], vo: tuple[int, int]) -> tuple[CoupleLoss, ...]:
    """Two heads, of 8 pairs of queries and keys and 16 values, and what each keeps."""
    return (
        *(CoupleLoss(f"layers.0.attn.qk[{i}]", "qk", 8, 8, n) for i, n in enumerate(qk)),
        *(CoupleLoss(f"layers.0.attn.vo[{i}]", "vo", 16, 16, n) for i, n in enumerate(vo)),
    )


def plan(losses: tuple[CoupleLoss, ...] = (), removal: Removal | None = None, round_to: int = 1) -> Plan:
    return Plan(removal or Removal(), losses, 9, 8, 7, 6, PlanSettings(round_to=round_to))


def stack(width: int) -> Removal:
    gone = {2: np.arange(width, 16)}
    return Removal({"experts": (4, 24, 16)}, {"experts": gone})


CASES = {
    "nothing": (plan(heads((8, 8), (16, 16))), []),
    "alike": (plan(heads((4, 4), (8, 8))), []),
    "a whole head": (plan(heads((8, 0), (16, 0))), []),
    "odd heads": (plan(heads((6, 6), (12, 12))), ["heads of 1 layers have values .*such as 12.*round_to=8"]),
    "unlike": (plan(heads((8, 8), (8, 8))), ["in 1 layers queries and keys keep another share"]),
    "ragged": (plan(heads((8, 4), (16, 8))), ['heads of 1 layers keep different counts.*heads="uniform"']),
    "experts": (plan(removal=stack(13)), ["1 matrices have a width", "1 stacks of experts.*round_to=8"]),
    "even experts": (plan(removal=stack(8)), []),
}


@pytest.mark.parametrize(("made", "expected"), CASES.values(), ids=CASES)
def test_notes(made: Plan, expected: list[str]) -> None:
    found = slow_shapes(made, uneven(made))
    assert len(found) == len(expected), found
    for note, pattern in zip(found, expected, strict=True):
        assert re.match(pattern, note), note


def test_notes_of_graphs() -> None:
    """A norm over hidden units, of which some are gone."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 8))
    compiled = ecospa_fx.compile(model, args=(torch.randn(3, 8),))
    compiled(torch.randn(3, 8)).square().mean().backward()
    report = compiled.sparsify(ratio=0.5, round_to=8)
    assert len(report.slow) == 1
    assert report.slow[0].startswith("1 norms over an axis that has become smaller")
    assert report.slow[0] in str(report)
    assert report.to_dict()["slow"] == list(report.slow)


def test_masks_that_are_written_out() -> None:
    def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return attend(self.down(self.up(x).relu()), mask)

    inputs = torch.randn(2, 4, 8), torch.randn(4, 4)
    compiled = ecospa_fx.compile(Masked(), args=inputs)
    compiled(*inputs).square().mean().backward()
    assert (
        compiled.sparsify(ratio=0.5, round_to=8).slow[0].startswith("in 1 places attention runs with a mask")
    )
