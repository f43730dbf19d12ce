"""Attentions whose weights hold heads on an axis of their own, in every order that einsum allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DIM = 8, 4


@dataclass(frozen=True)
class Layout:
    """One way to write an attention.

    Attributes:
        inner: axes of the weights of queries, keys and values: width ``d``, heads ``h``, head dims ``k``.
        outer: axes of the output's weight.
        way: how products are written: ``"einsum"``, ``"linear"``, ``"tensordot"`` or ``"matmul"``.
        heads: key heads.
        group: query heads for each of them.
        repeat: how keys are repeated; with ``"axis"`` groups have an axis of their own in the weights.
        bias: whether there are biases ``[heads, head dims]``.
    """

    inner: str = "dhk"
    outer: str = "hkd"
    way: str = "einsum"
    heads: int = 2
    group: int = 1
    repeat: str = "interleave"
    bias: bool = True

    def sizes(self, axes: str, heads: int) -> list[int]:
        """Sizes of a weight."""
        return [{"d": WIDTH, "h": heads, "k": DIM}[c] for c in axes]


class Heads(nn.Module):
    """A block: embedding, attention, output; in double precision."""

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layout, many = layout, layout.heads * layout.group
        self.embed, self.norm, self.head = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)
        for name, heads in (("q", many), ("k", layout.heads), ("v", layout.heads)):
            setattr(self, name, nn.Parameter(0.4 * torch.randn(layout.sizes(layout.inner, heads))))
            setattr(self, f"{name}_bias", nn.Parameter(torch.randn(heads, DIM)) if layout.bias else None)
        self.o = nn.Parameter(torch.randn(layout.sizes(layout.outer, many)))
        self.double()

    def into(self, x: Tensor, name: str) -> Tensor:
        """Queries, keys or values, ``[batch, heads, time, dim]``."""
        w, bias, inner = getattr(self, name), getattr(self, f"{name}_bias"), self.layout.inner
        if self.layout.way == "linear":
            flat = w.permute([inner.index(c) for c in "dhk"]).flatten(1)
            y = F.linear(x, flat.T, None if bias is None else bias.flatten())
            return y.unflatten(-1, (-1, DIM)).transpose(1, 2)
        y = self._into(x, w)
        return y if bias is None else y + bias[:, None]

    def _into(self, x: Tensor, w: Tensor) -> Tensor:
        inner = self.layout.inner
        if self.layout.way == "einsum":
            return torch.einsum(f"btd,{inner}->bhtk", x, w)
        if self.layout.way == "matmul":
            return x[:, None] @ w.permute([inner.index(c) for c in "hdk"])
        y = torch.tensordot(x, w, dims=([2], [inner.index("d")]))
        left = "bt" + inner.replace("d", "")
        return y.permute([left.index(c) for c in "bhtk"])

    def out(self, y: Tensor) -> Tensor:
        """From the heads back to the width."""
        way, outer = self.layout.way, self.layout.outer
        if way == "einsum":
            return torch.einsum(f"bhtk,{outer}->btd", y, self.o)
        if way == "tensordot":
            return torch.tensordot(y, self.o, dims=([1, 3], [outer.index("h"), outer.index("k")]))
        w = self.o.permute([outer.index(c) for c in "hkd"])
        return (
            (y @ w).sum(1) if way == "matmul" else F.linear(y.transpose(1, 2).flatten(2), w.flatten(0, 1).T)
        )

    def repeated(self, x: Tensor) -> Tensor:
        """Keys or values for each query head."""
        group = self.layout.group
        if group == 1:
            return x
        if self.layout.repeat == "interleave":
            return x.repeat_interleave(group, 1)
        return x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        q, k, v = self.into(y, "q"), self.repeated(self.into(y, "k")), self.repeated(self.into(y, "v"))
        scores = q @ k.mT * 0.5
        scores = scores if mask is None else scores + mask
        return self.head(x + self.out(scores.softmax(-1) @ v))


class Groups(Heads):
    """Groups of query heads on an axis of their own: queries ``[width, heads, group, dim]``."""

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        super().__init__(layout, seed)
        h, g = layout.heads, layout.group
        self.q = nn.Parameter(0.4 * torch.randn(WIDTH, h, g, DIM).double())
        self.o = nn.Parameter(torch.randn(h, g, DIM, WIDTH).double())
        self.q_bias = None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        q, k, v = torch.einsum("btd,dhgk->bhgtk", y, self.q), self.into(y, "k"), self.into(y, "v")
        weights = torch.einsum("bhgtk,bhsk->bhgts", q, k).softmax(-1)
        z = torch.einsum("bhgts,bhsk->bhgtk", weights, v)
        return self.head(x + torch.einsum("bhgtk,hgkd->btd", z, self.o))
