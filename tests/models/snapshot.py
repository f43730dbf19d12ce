"""What a refused request must not change: parameters, gradients, buffers, optimizer state, graphs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ecospa_fx import CompiledModel


def identical(a: Any, b: Any) -> bool:
    """Equal bit for bit, NaN included, through any structure."""
    (left, tree), (right, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return tree == other and all(_same(x, y) for x, y in zip(left, right, strict=True))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(t: Tensor) -> Tensor:
    if t.is_meta:
        return torch.tensor(t.shape)
    return t.detach().to_dense().contiguous().flatten().view(torch.uint8)


def state_of(model: nn.Module, *optimizers: Optimizer) -> dict[str, Any]:
    """A deep copy of all values, with the identities of the tensors that hold them."""
    source = getattr(model, "source", model)
    tensors = [*source.named_parameters(), *source.named_buffers()]
    signatures = model._signatures if isinstance(model, CompiledModel) else ()
    return {
        "values": {n: t.detach().clone() for n, t in tensors},
        "identities": {n: id(t) for n, t in tensors},
        "grads": {n: p.grad.clone() for n, p in source.named_parameters() if p.grad is not None},
        "modes": [m.training for m in source.modules()],
        "optimizers": copy.deepcopy([o.state_dict() for o in optimizers]),
        "graphs": [(str(s.program.graph), str(s.executable.module.graph)) for s in signatures],
        "removal": getattr(model, "removal", None) and model.removal.to_dict(),
        "random": torch.get_rng_state(),
    }


@contextlib.contextmanager
def untouched(model: nn.Module, *optimizers: Optimizer) -> Iterator[None]:
    """Afterwards everything is bit for bit as it was."""
    before = state_of(model, *optimizers)
    yield
    after = state_of(model, *optimizers)
    changed = [key for key in before if not identical(before[key], after[key])]
    assert not changed, f"changed: {', '.join(changed)}"
