"""A feed-forward block in training, for the tests of schedules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule

UNIT = 21  # a row, its bias and a column
DENSE = 34 * UNIT + 10


def ffn(dtype: torch.dtype = torch.float64) -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 34), nn.GELU(), nn.Linear(34, 10)).to(dtype)
    return ecospa_fx.compile(model, args=(torch.randn(5, 10, dtype=dtype),))


def batches(dtype: torch.dtype = torch.float64, seed: int = 1) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(5, 10, generator=generator, dtype=dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.flip(-1)).square().mean()


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def half(compiled: nn.Module, optimizer: Optimizer, **more: Any) -> SparsitySchedule:
    return SparsitySchedule(compiled, optimizer, **{"target_ratio": 0.5, "every": 3, "end": 9, **more})


def train(
    compiled: nn.Module, optimizer: Optimizer, schedule: SparsitySchedule, data: Iterator[Tensor], steps: int
) -> list[float]:
    losses = []
    for x in itertools.islice(data, steps):
        loss = loss_of(compiled, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses
