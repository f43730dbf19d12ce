"""Mixtures of experts with routers of many kinds; each can be told which experts are never chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers.integrations.moe  # noqa: F401  registers its operator
from torch import Tensor, nn

from tests.models.experts import parameter

WIDTH, HIDDEN, EXPERTS, CHOSEN = 8, 6, 8, 2


class Routed(nn.Module):
    """Gathered experts; ``lost`` are those that are never chosen, written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up, self.up_bias = parameter(EXPERTS, 2 * HIDDEN, WIDTH), parameter(EXPERTS, 2 * HIDDEN)
        self.down, self.down_bias = parameter(EXPERTS, WIDTH, HIDDEN), parameter(EXPERTS, WIDTH)
        self.lost: Tensor | None = None

    def without(self, scores: Tensor) -> Tensor:
        return scores if self.lost is None else scores.masked_fill(self.lost, -torch.inf)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def mixed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        experts = chosen.reshape(-1)
        tokens = x.repeat_interleave(chosen.shape[-1], 0).unsqueeze(-1)
        gate, up = ((self.up[experts] @ tokens).squeeze(-1) + self.up_bias[experts]).chunk(2, -1)
        y = (
            torch.bmm(self.down[experts], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
            + self.down_bias[experts]
        )
        return (y * weights.reshape(-1, 1)).view(*chosen.shape, WIDTH).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixed(x, *self.chosen(x))


class SoftmaxFirst(Routed):
    """As Mixtral does."""

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.without(self.without(self.router(x)).softmax(-1)).topk(CHOSEN, -1)
        return weights / weights.sum(-1, keepdim=True), chosen


class TopkFirst(Routed):
    """As GPT-OSS does, with a bias of the router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, chosen = self.without(self.router(x)).topk(CHOSEN, -1)
        return values.softmax(-1), chosen


class Corrected(Routed):
    """Sigmoid scores; a bias, on the choice alone, would choose an expert that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("correction", torch.linspace(0.0, 2.0, EXPERTS))

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.without(self.router(x)).sigmoid()
        chosen = self.without(scores + self.correction).topk(CHOSEN, -1)[1]
        weights = scores.gather(1, chosen)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), chosen


class Grouped(Corrected):
    """Groups of experts are chosen first, by their two highest scores, as DeepSeek-V3 does."""

    groups, admitted, other = 4, 2, -torch.inf

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.without(self.router(x)).sigmoid()
        choice = self.without(scores + self.correction)
        best = self.group_scores(choice.view(-1, self.groups, EXPERTS // self.groups))
        mask = torch.zeros_like(best).scatter(1, best.topk(self.admitted, -1, sorted=False)[1], 1)
        mask = mask.unsqueeze(-1).expand(-1, -1, EXPERTS // self.groups).reshape(-1, EXPERTS)
        chosen = self.without(choice.masked_fill(~mask.bool(), self.other)).topk(CHOSEN, -1)[1]
        weights = scores.gather(1, chosen)
        return weights / weights.sum(-1, keepdim=True), chosen

    def group_scores(self, scores: Tensor) -> Tensor:
        return scores.topk(1, -1)[0].sum(-1)


class GroupedByMaximum(Grouped):
    """As DeepSeek-V2 does; experts of other groups score zero."""

    groups, other = 2, 0.0

    def group_scores(self, scores: Tensor) -> Tensor:
        return scores.max(-1).values


class OneGroup(Grouped):
    """A config may name one group, that of all."""

    groups, admitted = 1, 1


class Noisy(SoftmaxFirst):
    """What a first network makes of the tokens is routed; the logits are scaled and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Linear(WIDTH, WIDTH), parameter(EXPERTS)

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.without(self.router(torch.tanh(self.first(x)))) / 2 + self.shift
        weights, chosen = self.without(logits.softmax(-1)).topk(CHOSEN, -1)
        return weights, chosen


class Switch(SoftmaxFirst):
    """One expert for each token."""

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.without(self.without(self.router(x)).softmax(-1)).max(-1, keepdim=True)
        return weights, chosen


class InRuns(SoftmaxFirst):
    """Tokens in the order of their experts, and a grouped product (single precision only)."""

    def mixed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        experts, order = torch.sort(chosen.reshape(-1))
        ends = torch.histc(experts.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
        tokens = x[order // chosen.shape[-1]]
        grouped = torch.ops.transformers.grouped_mm_fallback
        gate, up = (grouped(tokens, self.up.mT, ends) + self.up_bias[experts]).chunk(2, -1)
        y = grouped(F.silu(gate) * up, self.down.mT, ends) + self.down_bias[experts]
        y = (y * weights.reshape(-1)[order, None])[torch.argsort(order)]
        return y.view(*chosen.shape, WIDTH).sum(1)


class Tanh(SoftmaxFirst):
    """Capped logits: an expert that is gone would have a score like others."""

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.tanh(self.router(x)).softmax(-1).topk(CHOSEN, -1)
        return weights, chosen


class Balanced(SoftmaxFirst):
    """The mean of the logits is minus infinity once one of them is."""

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        weights, chosen = logits.softmax(-1).topk(CHOSEN, -1)
        return weights * logits.mean(), chosen


class Masked(SoftmaxFirst):
    """A mask from outside may leave fewer experts than are taken."""

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:  # type: ignore[override]
        scores = self.router(x).softmax(-1).masked_fill(~allowed, -torch.inf)
        weights, chosen = scores.topk(CHOSEN, -1)
        return x + self.mixed(x, weights, chosen)


class ReadTwice(SoftmaxFirst):
    """The first expert sees every token."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.down[0] @ self.down[0].mT)


class InPart(SoftmaxFirst):
    """The second product finds its experts by numbers that are worked out anew."""

    def mixed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        experts, tokens = chosen.reshape(-1), x.repeat_interleave(chosen.shape[-1], 0).unsqueeze(-1)
        gate, up = (self.up[experts] @ tokens).squeeze(-1).chunk(2, -1)
        y = (self.down[(experts + 1) - 1] @ (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (y * weights.reshape(-1, 1)).view(*chosen.shape, WIDTH).sum(1)


GO = (SoftmaxFirst, TopkFirst, Corrected, Grouped, OneGroup, GroupedByMaximum, Noisy, Switch)
