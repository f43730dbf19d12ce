"""Masks: which ones hide just what comes later, or nothing, whatever the sizes and the values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.testing import assert_equals_masked

LOW = torch.finfo(torch.float64).min
Mask = Callable[[Tensor], Tensor]


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    at = torch.arange(x.shape[1], device=x.device)
    return at[:, None], at[None]


def full(x: Tensor, value: float) -> Tensor:
    return torch.full((x.shape[1], x.shape[1]), value, dtype=x.dtype)


def later(x: Tensor) -> Tensor:
    rows, columns = places(x)
    return columns > rows


def same_document(x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1]).expand(x.shape[0], -1)
    document = (torch.diff(at, prepend=at[:, :1] - 1) != 1).cumsum(-1)
    return (document[:, None, :, None] == document[:, None, None]) & ~later(x)


def two_documents(x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1]).expand(x.shape[0], -1)
    document = (torch.diff(at, prepend=at[:, :1] + 1) != 1).cumsum(-1)
    return (document[:, None, :, None] == document[:, None, None].flip(-1)) & ~later(x)


def window(x: Tensor, width: int) -> Tensor:
    rows, columns = places(x)
    return (columns <= rows) & (columns > rows - width)


CAUSAL: dict[str, Mask] = {
    "compared": lambda x: ~later(x),
    "expanded": lambda x: (~later(x))[None, None].expand(x.shape[0], -1, -1, -1),
    "transposed": lambda x: places(x)[1].transpose(0, 1) >= places(x)[0].transpose(0, 1),
    "triangle": lambda x: torch.ones_like(later(x)).tril(),
    "added triangle": lambda x: full(x, -torch.inf).triu(1),
    "filled": lambda x: full(x, 0).masked_fill(later(x), LOW),
    "chosen": lambda x: torch.where(later(x), full(x, LOW), 0.0),
    "anded": lambda x: ~later(x) & (later(x) | True),
    "one document": same_document,
}
KEPT: dict[str, Mask] = {
    "wide window": lambda x: window(x, 4096),
    "window": lambda x: window(x, 4),
    "one more": lambda x: torch.ones_like(later(x)).tril(1),
    "without itself": lambda x: places(x)[1] < places(x)[0] + (places(x)[0] == 0),
    "earlier": lambda x: later(x) | torch.eye(x.shape[1], dtype=torch.bool),
    "not low enough": lambda x: full(x, 0).masked_fill(later(x), -1e4),
    "every other": lambda x: ((places(x)[0] - places(x)[1]) % 2 == 0) & ~later(x),
    "of values": lambda x: ~later(x) & (x[:, None, :, :1] < 9),
    "two documents": two_documents,
}
NONE: dict[str, Mask] = {
    "all": lambda x: torch.ones_like(later(x)),
    "zeros": lambda x: full(x, 0).masked_fill(places(x)[1] < 0, LOW),
    "before the end": lambda x: (places(x)[1] < x.shape[1]) & (places(x)[0] >= 0),
}


class Attention(nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, self.mask(x))
        return self.out(y.transpose(1, 2).flatten(2))


CASES = [
    pytest.param(mask, kept, causal, id=name)
    for masks, kept, causal in ((CAUSAL, False, True), (KEPT, True, False), (NONE, False, False))
    for name, mask in masks.items()
]


@pytest.mark.parametrize(("mask", "kept", "causal"), CASES)
def test_what_a_mask_says(mask: Mask, kept: bool, causal: bool) -> None:
    model = Attention(mask).double()
    compiled = ecospa_fx.compile(model, args=(torch.randn(2, 7, 8).double(),))
    (node,) = (n for n in compiled.analysis.program.graph.nodes if "attention" in str(n.target))
    assert bool(node.args[3:]) is kept
    assert node.kwargs.get("is_causal", False) is causal
    for length in (2, 5, 23):
        x = torch.randn(3, length, 8).double()
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-9, atol=1e-9)
    assert_equals_masked(compiled, torch.randn(3, 9, 8).double())
