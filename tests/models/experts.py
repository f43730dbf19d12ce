"""Mixtures of experts in many spellings: what picks the matrices, what happens between the products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.blocks import parameter

WIDTH, HIDDEN, EXPERTS, CHOSEN = 12, 10, 5, 2


class Experts(nn.Module):
    """Gated experts in stacked tensors; each subclass computes them in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up, self.up_bias = parameter(EXPERTS, 2 * HIDDEN, WIDTH), parameter(EXPERTS, 2 * HIDDEN)
        self.down, self.down_bias = parameter(EXPERTS, WIDTH, HIDDEN), parameter(EXPERTS, WIDTH)
        self.shared = parameter(HIDDEN)
        self.register_buffer("table", torch.randn(HIDDEN))

    def gated(self, h: Tensor) -> Tensor:
        gate, up = h.chunk(2, -1)
        return F.silu(gate) * up

    def between(self, h: Tensor) -> Tensor:
        """From the first product to the input of the second."""
        return self.gated(h)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = self.router(x).softmax(-1).topk(CHOSEN, -1)
        return weights, experts


class Gathered(Experts):
    """Matrices gathered for every token."""

    def second(self, experts: Tensor) -> Tensor:
        """The experts of the second product."""
        return experts

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        experts = chosen.reshape(-1)
        tokens = x.repeat_interleave(CHOSEN, 0).unsqueeze(-1)
        h = self.between((self.up[experts] @ tokens).squeeze(-1) + self.up_bias[experts])
        second = self.second(experts)
        y = torch.bmm(self.down[second], h.unsqueeze(-1)).squeeze(-1) + self.down_bias[second]
        return (y * weights.reshape(-1, 1)).view(*chosen.shape, WIDTH).sum(1)


class Selected(Experts):
    """The same by ``index_select``, without biases."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        tokens = x.repeat_interleave(CHOSEN, 0).unsqueeze(-1)
        h = self.gated(torch.bmm(self.up.index_select(0, chosen.reshape(-1)), tokens).squeeze(-1))
        y = torch.bmm(self.down.index_select(0, chosen.reshape(-1)), h.unsqueeze(-1)).squeeze(-1)
        return (y * weights.reshape(-1, 1)).view(*chosen.shape, WIDTH).sum(1)


class Einsum(Experts):
    """Two axes of numbers, and einsum."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        h = self.gated(torch.einsum("tkid,td->tki", self.up[chosen], x) + self.up_bias[chosen])
        return (torch.einsum("tkdi,tki->tkd", self.down[chosen], h) * weights[..., None]).sum(1)


class Turned(Experts):
    """A product whose einsum turns the tokens round: the rows are then other tokens'."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.chosen(x)
        h = self.gated(torch.einsum("tkid,td->kti", self.up[chosen], x))
        h = h.reshape(*chosen.shape, HIDDEN)
        return (torch.einsum("tkdi,tki->tkd", self.down[chosen], h) * weights[..., None]).sum(1)


class Interleaved(Gathered):
    def gated(self, h: Tensor) -> Tensor:
        return F.silu(h[..., ::2]) * h[..., 1::2]


class Nested(Gathered):
    """The gate lies around the other half: positions say which is which."""

    def gated(self, h: Tensor) -> Tensor:
        half = HIDDEN // 2
        gate = torch.cat([h[..., :half], h[..., 3 * half :]], -1)
        return F.silu(gate) * h[..., half : 3 * half]


class OneTable(Gathered):
    def between(self, h: Tensor) -> Tensor:
        return self.gated(h) * self.table


class OneScale(Gathered):
    def between(self, h: Tensor) -> Tensor:
        return self.gated(h) * self.shared


class Flipped(Gathered):
    def between(self, h: Tensor) -> Tensor:
        return self.gated(h).flip(-1)


class OtherOrder(Gathered):
    """Tokens change places between the products."""

    def between(self, h: Tensor) -> Tensor:
        return self.gated(h)[torch.arange(h.shape[0] - 1, -1, -1)]


class OtherExperts(Gathered):
    """The second product is another expert's."""

    def second(self, experts: Tensor) -> Tensor:
        return (experts + 1) % EXPERTS


class AlsoFirst(Gathered):
    """The first expert sees every token as well."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.gated(F.linear(x, self.up[0], self.up_bias[0]))
        return super().forward(x) + F.linear(h, self.down[0])


class Everywhere(Experts):
    """Every expert sees every token, by einsum."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(torch.einsum("td,eid->tei", x, self.up) + self.up_bias)
        y = torch.einsum("tei,edi->ted", h, self.down) + self.down_bias
        return (y * self.router(x).softmax(-1)[..., None]).sum(1)


class EverywhereScaled(Everywhere):
    """The scale that all share is gathered for each expert."""

    def between(self, h: Tensor) -> Tensor:
        return self.gated(h) * self.shared * self.table


class Batched(Experts):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.bmm(x.expand(EXPERTS, -1, -1), self.up.mT) + self.up_bias[:, None]
        y = torch.bmm(self.gated(h), self.down.mT) + self.down_bias[:, None]
        return (y * self.router(x).softmax(-1).t()[..., None]).sum(0)


class Looped(Experts):
    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            h = self.gated(F.linear(x, self.up[e], self.up_bias[e]))
            out = out + share[:, e : e + 1] * F.linear(h, self.down[e], self.down_bias[e])
        return out


class HeadStacks(nn.Module):
    """Attention whose heads stand in an axis of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (parameter(EXPERTS, WIDTH, n) for n in (6, 6, HIDDEN))
        self.o = parameter(EXPERTS, HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("td,hdk->htk", x, w) for w in (self.q, self.k, self.v))
        return torch.einsum("htk,hkd->td", (q @ k.mT / 6**0.5).softmax(-1) @ v, self.o)


CHOOSE_ALONE = (Gathered, Selected, Einsum, Interleaved, Everywhere, EverywhereScaled, Batched, Looped)
CHOOSE_TOGETHER = (Turned, Nested, OneTable, OneScale, Flipped, OtherOrder, OtherExperts, AlsoFirst)
