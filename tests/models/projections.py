"""Attentions whose projections, heads or rotary pairs lie in unusual places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.blocks import (
    DIM,
    GROUP,
    GROUPED,
    HEADS,
    KV,
    SCALE,
    SINGLE,
    WIDTH,
    Attention,
    merge_heads,
    parameter,
    split_heads,
)


class Grouping(Attention):
    """The kernel repeats the keys."""

    def mix(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.heads(x), is_causal=True, enable_gqa=True)


class Boxes(Attention):
    """Einsum with heads on an axis of the parameters: boxes, in which each head keeps dims of its own."""

    def more(self) -> None:
        del self.q, self.k, self.v, self.o
        self.wq, self.wk, self.wv = (parameter(WIDTH, HEADS, DIM) for _ in range(3))
        self.wo = parameter(HEADS, DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,dhk->bhsk", x, w) for w in (self.wq, self.wk, self.wv))
        weights = (torch.einsum("bhsk,bhtk->bhst", q, k) * SCALE).softmax(-1)
        return torch.einsum("bhtk,hkd->btd", torch.einsum("bhst,bhtk->bhsk", weights, v), self.wo)


class TimeFirst(Attention):
    """Einsum with heads behind time, keys repeated by expand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in self.heads(x))
        k, v = (y[:, :, :, None].expand(-1, -1, -1, GROUP, -1).flatten(2, 3) for y in (k, v))
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE).softmax(-1)
        return self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Unrepeated(Attention):
    """Queries of a group on an axis of their own."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in self.heads(x))
        q = q.unflatten(2, (KV, GROUP))
        weights = (torch.einsum("bqkgd,bskd->bkgqs", q, k) * SCALE).softmax(-1)
        return self.o(torch.einsum("bkgqs,bskd->bqkgd", weights, v).flatten(2))


class Merged(Attention):
    """Batch and heads on one axis."""

    def mix(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (y.reshape(batch * HEADS, time, DIM) for y in self.repeated(x))
        weights = torch.bmm(q, k.mT).mul(SCALE).softmax(-1)
        return torch.bmm(weights, v).view(batch, HEADS, time, DIM)


class Fused(Attention):
    """One projection for all three, as vision transformers write it."""

    def more(self) -> None:
        del self.q, self.k, self.v
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * DIM)

    def mix(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DIM)
        return F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))


class FusedByHead(Fused):
    """One projection for all three, head by head."""

    def mix(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).view(*x.shape[:2], HEADS, 3 * DIM).chunk(3, -1)
        return F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in parts))


class SharedKeys(Grouping):
    """A second layer of queries reads the first one's keys and values."""

    def more(self) -> None:
        self.q2, self.o2 = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        first = self.o(merge_heads(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))
        q = split_heads(self.q2(x + first), HEADS)
        return first + self.o2(merge_heads(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


class InPlace(Grouping):
    """Writes into a copy of the queries."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        q = q.clone()
        q[..., :4] = q[..., :4] * 2
        q *= 0.5
        return q.mul_(1.1), k, v


class Rotary(Attention):
    """Rotary embedding, turned in a way that subclasses choose."""

    def angles(self, x: Tensor) -> Tensor:
        frequency = 1e4 ** (-torch.arange(0, DIM, 2, dtype=x.dtype) / DIM)
        return torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), frequency)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.turned(q), self.turned(k), v

    def turned(self, x: Tensor) -> Tensor:
        """Halves, as ``x * cos + rotate_half(x) * sin``."""
        angles = torch.cat((self.angles(x), self.angles(x)), -1)
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()


class RotaryComplex(Rotary):
    """Neighbours as complex numbers."""

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        angles = self.angles(x)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class RotaryInterleaved(Rotary):
    """Neighbours, by slices with a step of two."""

    def turned(self, x: Tensor) -> Tensor:
        cos, sin = (y.repeat_interleave(2, -1) for y in (self.angles(x).cos(), self.angles(x).sin()))
        return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin


class RotaryHalves(Rotary):
    """Halves, turned one by one and joined."""

    def turned(self, x: Tensor) -> Tensor:
        cos, sin = self.angles(x).cos(), self.angles(x).sin()
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


PAIRS = {"qk": KV * DIM // 2, "vo": KV * DIM}
PROJECTIONS = {
    "grouping": (Grouping, GROUPED),
    "boxes": (Boxes, SINGLE),
    "time-first": (TimeFirst, GROUPED),
    "unrepeated": (Unrepeated, GROUPED),
    "rotary": (Rotary, PAIRS),
    "rotary-complex": (RotaryComplex, PAIRS),
    "rotary-interleaved": (RotaryInterleaved, PAIRS),
    "rotary-halves": (RotaryHalves, PAIRS),
    "merged": (Merged, GROUPED),
    "fused": (Fused, SINGLE),
    "fused-by-head": (FusedByHead, SINGLE),
    "shared-keys": (SharedKeys, GROUPED),
    "in-place": (InPlace, GROUPED),
}
