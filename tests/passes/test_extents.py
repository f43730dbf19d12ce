"""Extents: widths of views over windows whose sizes depend on data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.testing import random_removal

HEADS, WIDTH = 3, 4


class Windows(nn.Module):
    """Attention within each of two windows; ``final`` reads what comes out."""

    def __init__(self, final: nn.Module) -> None:
        super().__init__()
        self.fused, self.final = nn.Linear(8, 3 * HEADS * WIDTH), final

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = self.fused(x).reshape(len(x), 3, HEADS, WIDTH).permute(1, 2, 0, 3).unbind(0)
        sizes = lengths.tolist()
        parts = zip(*(t.split(sizes, 1) for t in (q, k, v)), strict=True)
        attended = [((a @ b.mT).softmax(-1) @ c).transpose(0, 1) for a, b, c in parts]
        out: Tensor = self.final(torch.cat(attended).reshape(len(x), -1).contiguous())
        return out


def _compiled(final: nn.Module) -> ecospa_fx.CompiledModel:
    torch.manual_seed(0)
    example = (torch.randn(7, 8).double(), torch.tensor([3, 4]))
    return ecospa_fx.compile(Windows(final).double(), args=example)


@pytest.mark.parametrize(
    "final",
    [
        nn.Linear(HEADS * WIDTH, 5),
        nn.Sequential(nn.Dropout(0.0), nn.RMSNorm(HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 5)),
    ],
    ids=["linear", "norm"],
)
def test_the_reader_tells_the_width(final: nn.Module) -> None:
    compiled = _compiled(final)
    assert sorted(c.kind for c in compiled.couplings.of_kinds()) == ["qk"] * HEADS + ["vo"] * HEADS
    compiled.apply(random_removal(compiled, 0.5))
    found = compiled.verify(torch.randn(7, 8).double(), torch.tensor([5, 2]))
    assert found.within(1e-9), found


def test_without_a_reader_the_width_stays_unknown() -> None:
    frozen = _compiled(nn.ReLU()).couplings.frozen
    assert any(f.parameter == "fused.weight" and "depend on data" in f.reason.text for f in frozen)
