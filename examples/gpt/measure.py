"""What the table compares: perplexity, bytes of parameters, gradients and moments, and the time of a step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next token; inputs and targets have shape `[batch, length]`."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, length: int, batch: int = 16) -> float:
    """Perplexity over all whole windows of `length` tokens, read side by side without overlap."""
    count = (len(tokens) - 1) // length
    inputs = tokens[: count * length].view(count, length).split(batch)
    targets = tokens[1 : count * length + 1].view(count, length).split(batch)
    losses = [float(loss_of(model, x, y)) * len(x) for x, y in zip(inputs, targets, strict=True)]
    return math.exp(sum(losses) / count)


def training_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all storages that hold parameters, gradients and optimizer state, each counted once."""
    storages = (tensor.untyped_storage() for tensor in training_tensors(model, optimizer))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
        yield from (value for value in optimizer.state[parameter].values() if isinstance(value, Tensor))


def alternating_medians(steps: Iterable[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn, so that a busy machine slows all of them alike."""
    steps = list(steps)
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, row in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            row.append(time.perf_counter() - start)
    return [median(row) for row in seconds]
