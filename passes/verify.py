"""Verify: the compiled model against the masked original, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ecospa_fx.masked import Difference, call_masked, floats, largest, repeatable
from ecospa_fx.removal import Removal


def verify(
    compiled: Callable[[], Any],
    model: nn.Module,
    inputs: Mapping[str, Any],
    removal: Removal,
    shapes: Mapping[str, tuple[int, ...]],
) -> Difference:
    """Run both models on one call, in evaluation mode, and compare.

    Dropout draws other random numbers for smaller tensors, so the training mode has no common oracle.

    Args:
        compiled: runs the compiled model on the inputs.
        model: the original module, whose parameters are the compiled model's.
        inputs: the call's arguments by name.
        removal: what is gone.
        shapes: dense shape of every parameter.

    Returns:
        The largest differences.
    """
    parameters = dict(model.named_parameters())
    state = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()}
    with repeatable(model):
        outputs = floats(compiled())
        gradients = _gradients(outputs, parameters)
    with repeatable(model):
        expected = floats(call_masked(model, state, removal, shapes, inputs))
        reference = _gradients(expected, state)
    return _difference(outputs, expected, gradients, reference)


def _gradients(
    outputs: Sequence[torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random projection of the outputs."""
    active = {n: p for n, p in parameters.items() if p.requires_grad}
    live = [o for o in outputs if o.requires_grad]
    if not active or not live:
        return {}
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device, o.dtype) for o in live
    ]
    loss = sum((o * w).sum() / max(o.numel(), 1) ** 0.5 for o, w in zip(live, weights, strict=True))
    assert isinstance(loss, torch.Tensor)
    found = torch.autograd.grad(
        loss.abs() if loss.is_complex() else loss, list(active.values()), allow_unused=True
    )
    return {n: g for n, g in zip(active, found, strict=True) if g is not None}


def _difference(
    outputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
) -> Difference:
    if len(outputs) != len(expected):
        return Difference(float("inf"), float("inf"))
    absolute, relative = largest(list(zip(expected, outputs, strict=True)))
    pairs = {n: (reference[n], gradients[n]) for n in reference.keys() & gradients.keys()}
    worst, worst_relative = largest(list(pairs.values()))
    where = max(pairs, key=lambda n: largest([pairs[n]])[0], default="") if worst else ""
    return Difference(absolute, relative, worst, worst_relative, where)
