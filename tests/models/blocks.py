"""Hand-written blocks: the plain one, feed-forwards of many kinds, and their tables with expected units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.testing import random_removal
from tests.models.masked import MaskedModel, assert_same

VOCAB, WIDTH, HEADS, KV, DIM, HIDDEN, EXPERTS, RANK = 50, 30, 6, 2, 10, 44, 3, 7
GROUP = HEADS // KV
SCALE = DIM**-0.5
GROUPED = {"qk": KV * DIM, "vo": KV * DIM}
SINGLE = {"qk": HEADS * DIM, "vo": HEADS * DIM}


def parameter(*shape: int) -> nn.Parameter:
    """Random entries whose products with a vector of the last axis stay near one."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[batch, time, heads * dim]`` to ``[batch, heads, time, dim]``."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The way back."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Attention(nn.Module):
    """Grouped queries, keys repeated for their group, fused softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, KV * DIM), nn.Linear(WIDTH, KV * DIM)
        self.more()

    def more(self) -> None:
        """Parameters beyond the four projections."""

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split_heads(self.q(x), HEADS), split_heads(self.k(x), KV), split_heads(self.v(x), KV)

    def repeated(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.heads(x)
        return q, k.repeat_interleave(GROUP, 1), v.repeat_interleave(GROUP, 1)

    def mix(self, x: Tensor) -> Tensor:
        """Values weighted by attention, shape ``[batch, heads, time, dim]``."""
        return F.scaled_dot_product_attention(*self.repeated(x), is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(merge_heads(self.mix(x)))


class FeedForward(nn.Module):
    """Up, an activation, down."""

    def __init__(self, up: int = HIDDEN) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, up), nn.Linear(HIDDEN, WIDTH)
        self.more()

    def more(self) -> None:
        """Parameters beyond the two layers."""

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(x))


class Raw(FeedForward):
    """``x @ w.T`` on bare parameters."""

    def more(self) -> None:
        self.w1, self.w2 = parameter(HIDDEN, WIDTH), parameter(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.w1.T) @ self.w2.T


class Gated(FeedForward):
    """A gate of its own."""

    def more(self) -> None:
        self.gate = nn.Linear(WIDTH, HIDDEN)

    def act(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x)) * self.up(x)


class Glu(FeedForward):
    """Values and gates in the halves of one projection."""

    def __init__(self) -> None:
        super().__init__(2 * HIDDEN)

    def act(self, x: Tensor) -> Tensor:
        return F.glu(self.up(x), -1)


class Alternating(Glu):
    """Values and gates in turns."""

    def act(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).view(*x.shape[:2], HIDDEN, 2).unbind(-1)
        return F.silu(gate) * value


class Squared(FeedForward):
    """The square of a rectifier."""

    def act(self, x: Tensor) -> Tensor:
        return F.relu(self.up(x)).square()


class Sigmoid(FeedForward):
    """An activation that maps zero to a half."""

    def act(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(x))


class Normed(FeedForward):
    """A norm over the hidden units, with a mean of their squares by hand after it."""

    def more(self) -> None:
        self.norm = nn.LayerNorm(HIDDEN)

    def act(self, x: Tensor) -> Tensor:
        hidden = self.norm(F.gelu(self.up(x)))
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-3)


class RootMeanSquare(FeedForward):
    """A fused root-mean-square norm over the hidden units."""

    def more(self) -> None:
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-3)

    def act(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.up(x)))


class Convolutional(FeedForward):
    """Convolutions over time, one of them by channel."""

    def more(self) -> None:
        del self.up, self.down
        self.widen = nn.Conv1d(WIDTH, HIDDEN, 3, padding=1)
        self.by_channel = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)
        self.narrow = nn.Conv1d(HIDDEN, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.by_channel(self.widen(x.mT)))).mT


class StackedExperts(FeedForward):
    """Every expert sees every token; their weights stand in one tensor."""

    def more(self) -> None:
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.e1, self.e2 = parameter(EXPERTS, HIDDEN, WIDTH), parameter(EXPERTS, WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("bsd,efd->bsef", x, self.e1))
        each = torch.einsum("bsef,edf->bsed", hidden, self.e2)
        return (each * self.router(x).softmax(-1)[..., None]).sum(2)


class ListedExperts(FeedForward):
    """Experts with weights of their own, and units of their own."""

    def more(self) -> None:
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(FeedForward() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        return torch.stack([share[..., i : i + 1] * e(x) for i, e in enumerate(self.experts)]).sum(0)


class LowRank(FeedForward):
    """An adapter of low rank beside the first layer."""

    def more(self) -> None:
        self.a, self.b = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, HIDDEN, bias=False)

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x) + 2 * self.b(self.a(x)))


class InPlace(FeedForward):
    """Writes into its own hidden units."""

    def act(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)).clone()
        hidden[..., :4] = hidden[..., :4] * 2
        return hidden.mul_(0.5)


class Model(nn.Module):
    """Tokens in, logits out, one block between; two heads write into what is returned."""

    def __init__(self, attention: type[nn.Module], feed_forward: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention, self.feed_forward = attention(), feed_forward()
        self.head, self.shortcut = nn.Linear(WIDTH, VOCAB), nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embed(tokens)
        x = embedded + self.attention(self.norms[0](embedded))
        return self.head(x + self.feed_forward(self.norms[1](x))) + self.shortcut(embedded)


@dataclass(frozen=True)
class Block:
    """One row of the tables.

    Attributes:
        attention: its class.
        feed_forward: its class.
        units: expected units by kind, the residual stream aside.
    """

    attention: Callable[[], nn.Module] = Attention
    feed_forward: Callable[[], nn.Module] = FeedForward
    units: Mapping[str, int] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The model, in double precision."""
        return Model(self.attention, self.feed_forward).double()  # type: ignore[arg-type]


def hidden(kind: type[nn.Module], units: Mapping[str, int] | None = None) -> Block:
    """The plain attention with a feed-forward of some kind."""
    return Block(Attention, kind, GROUPED | ({"ffn": HIDDEN} if units is None else dict(units)))


FEED_FORWARDS = {
    "plain": hidden(FeedForward),
    "raw": hidden(Raw),
    "gated": hidden(Gated),
    "glu": hidden(Glu),
    "alternating": hidden(Alternating),
    "squared": hidden(Squared),
    "sigmoid": hidden(Sigmoid),
    "normed": hidden(Normed),
    "root-mean-square": hidden(RootMeanSquare),
    "convolutional": hidden(Convolutional, {"conv": HIDDEN}),
    "stacked-experts": hidden(StackedExperts, {"ffn": EXPERTS * HIDDEN}),
    "listed-experts": hidden(ListedExperts, {"ffn": EXPERTS * HIDDEN}),
    "low-rank": hidden(LowRank, {"ffn": HIDDEN, "lowrank": RANK}),
    "in-place": hidden(InPlace),
}


def found_units(compiled: CompiledModel) -> dict[str, int]:
    """Units by kind, the residual stream aside."""
    found: Counter[str] = Counter()
    for couple in compiled.couplings:
        found[couple.kind] += couple.num_units
    found.pop("residual", None)
    return dict(found)


def assert_removable(block: Block) -> None:
    """Every expected unit is there, and two rounds of removal equal masking, at sizes never captured."""
    model = block.build().eval()
    masked = MaskedModel(model)
    compiled = ecospa_fx.compile(model, args=(torch.randint(VOCAB, (2, 9)),))
    assert found_units(compiled) == dict(block.units)
    assert not compiled.analysis.unknown
    for number in range(2):
        compiled.apply(random_removal(compiled, 0.4, number))
        tokens = torch.randint(VOCAB, (5, 13))
        assert_same(compiled, masked, lambda net, call=tokens: net(call))
