"""Attentions with scores, weights and norms of their own, and the units that each attention has to offer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.blocks import (
    DIM,
    GROUPED,
    HEADS,
    HIDDEN,
    KV,
    SCALE,
    WIDTH,
    Attention,
    Block,
    FeedForward,
    merge_heads,
    parameter,
    split_heads,
)
from tests.models.projections import PROJECTIONS, Grouping


class ByHand(Attention):
    """Scores, weights and values as separate products."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT * SCALE

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.repeated(x)
        return self.weights(self.scores(q, k)) @ v


class Causal(ByHand):
    """A mask of minus infinity, and dropout."""

    def weights(self, scores: Tensor) -> Tensor:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
        return F.dropout((scores + mask).softmax(-1), 0.1, self.training)


class TalkingHeads(ByHand):
    """Heads are mixed before and after the softmax."""

    def more(self) -> None:
        self.before, self.after = (nn.Linear(HEADS, HEADS, bias=False) for _ in range(2))

    def weights(self, scores: Tensor) -> Tensor:
        mixed = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.after(mixed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Positions(ByHand):
    """Relative positions, ALiBi slopes, a scale per head and a soft cap."""

    def more(self) -> None:
        self.relative, self.scale = nn.Embedding(64, HEADS), parameter(HEADS, 1, 1)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, HEADS + 1))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        distance = (place[:, None] - place[None]).clamp(-31, 31)
        bias = self.relative(distance + 31).permute(2, 0, 1) + self.slopes[:, None, None] * distance
        return 30 * torch.tanh((super().scores(q, k) * self.scale + bias) / 30)


class Sinks(ByHand):
    """One more score per head, whose weight goes nowhere."""

    def more(self) -> None:
        self.sink = parameter(HEADS)

    def weights(self, scores: Tensor) -> Tensor:
        sink = self.sink.view(1, HEADS, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class OffByOne(ByHand):
    """A softmax with one added to its sum."""

    def weights(self, scores: Tensor) -> Tensor:
        grown = (scores - scores.amax(-1, keepdim=True)).exp()
        return grown / (1 + grown.sum(-1, keepdim=True))


class NormedHeads(Attention):
    """A norm on each head's queries and keys, gates per head and per entry on the result."""

    def more(self) -> None:
        self.q_norm, self.k_norm = (nn.RMSNorm(DIM, eps=1e-6) for _ in range(2))
        self.by_head, self.by_entry = nn.Linear(WIDTH, HEADS), nn.Linear(WIDTH, HEADS * DIM)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x) * torch.sigmoid(self.by_head(x)).transpose(1, 2)[..., None]
        return self.o(merge_heads(mixed) * torch.sigmoid(self.by_entry(x)))


class LayerNormedHeads(Grouping):
    """A layer norm shared by the heads: it moves dead entries, so heads keep equal dims."""

    def more(self) -> None:
        self.q_norm, self.k_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v


class NormedProjections(Attention):
    """Norms over all heads at once."""

    def more(self) -> None:
        self.q_norm, self.k_norm = nn.LayerNorm(HEADS * DIM), nn.RMSNorm(KV * DIM)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self.q_norm(self.q(x)), self.k_norm(self.k(x))
        return split_heads(q, HEADS), split_heads(k, KV), split_heads(self.v(x), KV)


class Cosine(Grouping):
    """Queries and keys of length one."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return F.normalize(q, dim=-1), 3 * F.normalize(k, dim=-1), v


class OnePair(Attention):
    """Rotary positions on the last two dims alone, whose pair is taken apart and stacked."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.rotated(q), self.rotated(k), v

    def rotated(self, x: Tensor) -> Tensor:
        rest, last = x[..., :-2], x[..., -2:]
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
        turned = torch.stack([-last[..., 1::2], last[..., 0::2]], -1).flatten(-2)
        return torch.cat([rest, last * angles.cos() + turned * angles.sin()], -1)


class BesideItself(Attention):
    """What a token's own value says is taken out of what it gathers."""

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.repeated(x)
        out, unit = F.scaled_dot_product_attention(q, k, v), F.normalize(v, dim=-1)
        return out - (out * unit).sum(-1, keepdim=True) * unit


class Linear(Attention):
    """No softmax: keys meet values first."""

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.repeated(x)
        q, k = F.relu(q), F.relu(k)
        memory = torch.einsum("bhsd,bhse->bhde", k, v)
        norm = 1 / (torch.einsum("bhsd,bhd->bhs", q, k.sum(2)) + 1)
        return torch.einsum("bhsd,bhde->bhse", q, memory) * norm[..., None]


class Differential(Attention):
    """The difference of two softmaxes, each over half of the dims."""

    def more(self) -> None:
        self.share, self.norm = parameter(1), nn.RMSNorm(DIM)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.repeated(x)
        (q1, q2), (k1, k2) = q.chunk(2, -1), k.chunk(2, -1)
        return self.norm(((q1 @ k1.mT).softmax(-1) - self.share * (q2 @ k2.mT).softmax(-1)) @ v)


TABLE = {
    **PROJECTIONS,
    "by-hand": (ByHand, GROUPED),
    "causal": (Causal, GROUPED),
    "talking-heads": (TalkingHeads, GROUPED | {"lowrank": HEADS}),
    "positions": (Positions, GROUPED),
    "sinks": (Sinks, GROUPED),
    "off-by-one": (OffByOne, GROUPED),
    "normed-heads": (NormedHeads, GROUPED),
    "layer-normed-heads": (LayerNormedHeads, GROUPED | {"qk": DIM}),
    "normed-projections": (NormedProjections, GROUPED),
    "cosine": (Cosine, GROUPED),
    "one-pair": (OnePair, GROUPED | {"qk": KV * (DIM - 2)}),
    "beside-itself": (BesideItself, GROUPED),
    "linear": (Linear, GROUPED),
    "differential": (Differential, GROUPED),
}
ATTENTIONS = {
    name: Block(kind, FeedForward, {**units, "ffn": HIDDEN}) for name, (kind, units) in TABLE.items()
}
