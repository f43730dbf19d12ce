"""Operators that graphs call: what stands in for others computes the same."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecospa_fx import ops


@pytest.mark.parametrize(
    ("length", "groups", "widths", "masked", "causal"),
    [c for c in product((1, 5), (1, 3), ((4, 4), (4, 6), (6, 4)), (0, 1, 6), (False, True))
     if not (c[3] and c[4])],
)  # fmt: skip
def test_attention(length: int, groups: int, widths: tuple[int, int], masked: int, causal: bool) -> None:
    q = torch.randn(2, 6, length, widths[0], dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 6 // groups, 5, w, dtype=torch.double, requires_grad=True) for w in widths)
    mask = torch.randn(2, masked, length, 5, dtype=torch.double) if masked else None
    settings = {"attn_mask": mask, "is_causal": causal}
    found = ops.attention(q, k, v, **settings, enable_gqa=groups > 1)  # type: ignore[arg-type]
    wide = [t.repeat_interleave(groups, 1) for t in (k, v)]
    expected = F.scaled_dot_product_attention(q, *wide, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_gradients(found, q, k, v), _gradients(expected, q, k, v))


def _gradients(y: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), leaves)
