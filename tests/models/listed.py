"""Experts that are modules of their own, in the spellings of code before stacked tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPERTS, WIDTH, HIDDEN, TAKEN = 4, 6, 5, 2


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Listed(nn.Module):
    """A router and a list of experts; each subclass sends tokens to them in another way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Gated() for _ in range(EXPERTS))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the experts of each token: ``[tokens, taken]``."""
        weights, experts = self.router(x).softmax(-1).topk(TAKEN, -1)
        return weights / weights.sum(-1, keepdim=True), experts

    def forward(self, x: Tensor) -> Tensor:
        return self.routed(x.reshape(-1, WIDTH)).view(x.shape)

    def routed(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class OneHot(Listed):
    """Masks by expert, and sums at the places of tokens (Mixtral)."""

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        masks, out = F.one_hot(chosen, EXPERTS).permute(2, 1, 0), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rank, token = torch.where(masks[number])
            out.index_add_(0, token, expert(x[None, token].reshape(-1, WIDTH)) * weights[token, rank, None])
        return out


class Compared(Listed):
    """Tokens of each expert, found by comparison (DeepSeek V2 and V3)."""

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            out[token] = out[token] + expert(x[token]) * weights[token, rank, None]
        return out


class Repeated(Listed):
    """Each token once for every expert that it takes, in a memory that is filled expert by expert."""

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        tokens, flat = x.repeat_interleave(TAKEN, 0), chosen.view(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            out[flat == number] = expert(tokens[flat == number])
        return (out.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(1)


class Summed(Listed):
    """Every expert sees every token; those that are not taken weigh nothing."""

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.choose(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + expert(x) * torch.where(chosen == number, weights, 0.0).sum(-1, keepdim=True)
        return out


class Soft(Listed):
    """All experts, weighted by all probabilities."""

    def routed(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        parts = [gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)]
        return torch.stack(parts).sum(0)
