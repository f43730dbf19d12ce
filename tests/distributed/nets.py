"""A small model for tests on several processes, whole and sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule
from tests.distributed.processes import RANKS


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 10)
        self.blocks = nn.ModuleList(Block(10, 14 + 4 * i) for i in range(2))
        self.outlet = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.outlet(x)


def model() -> CompiledModel:
    torch.manual_seed(0)
    return ecospa_fx.compile(Net().double(), args=(batch(0),))


def sharded(**options: Any) -> CompiledModel:
    compiled = model()
    options = {"mesh": init_device_mesh("cpu", (RANKS,)), **options}
    for block in compiled.called_blocks.values():
        fully_shard(block, **options)
    fully_shard(compiled, **options)
    return compiled


def batch(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def mine(x: Tensor) -> Tensor:
    return x.chunk(RANKS)[dist.get_rank()]


def stepped(compiled: nn.Module, optimizer: Optimizer, x: Tensor) -> Tensor:
    loss = compiled(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def trained(
    compiled: CompiledModel,
    optimizer: Optimizer,
    schedule: SparsitySchedule,
    steps: range,
    part: Callable[[Tensor], Tensor],
) -> list[float]:
    """The mean loss over all ranks at each step."""
    losses = []
    for step in steps:
        loss = stepped(compiled, optimizer, part(batch(step)))
        schedule.step()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= RANKS
        losses.append(loss.item())
    return losses


def adamw(compiled: nn.Module) -> AdamW:
    return AdamW(compiled.parameters(), lr=0.01, weight_decay=0.1)
