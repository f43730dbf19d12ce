"""Verify: the compiled model against the masked original, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ecospa_fx.masked import (
    Difference,
    call_masked,
    floats,
    fresh,
    gradient_pairs,
    largest,
    projected_gradients,
    repeatable,
    widen,
)
from ecospa_fx.removal import Removal

Tensors = list[torch.Tensor]


def verify(
    compiled: Callable[[], Any],
    model: nn.Module,
    inputs: Mapping[str, Any],
    removal: Removal,
    shapes: Mapping[str, tuple[int, ...]],
    without: Callable[[Mapping[str, torch.Tensor]], Any] | None = None,
    kept: Callable[[Any], list[torch.Tensor]] = lambda _: [],
) -> Difference:
    """Run both models on one call, in evaluation mode, and compare.

    Dropout draws other random numbers for smaller tensors, so the training mode has no common oracle.

    Args:
        compiled: runs the compiled model on the inputs.
        model: the original module, whose parameters are the compiled model's.
        inputs: the call's arguments by name, with caches as wide as those of the dense model.
        removal: what is gone.
        shapes: dense shape of every parameter.
        without: where whole experts are gone, runs what the masked model computes then on its dense
            parameters (see :func:`~ecospa_fx.passes.without.without_experts`).
        kept: from an output to the tensors of its caches, of which only what is left counts.

    Returns:
        The largest differences.
    """
    inputs = fresh(inputs)  # the call fills the cache that it is given
    parameters = dict(model.named_parameters())
    state = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()}
    with repeatable(model):
        output = compiled()
        gradients = projected_gradients(floats(output), parameters)
    with repeatable(model):

        def with_gradients(output: Any) -> tuple[Any, dict[str, torch.Tensor]]:
            return output, projected_gradients(floats(output), state)

        if without is None:
            masked, reference = call_masked(model, state, removal, shapes, inputs, with_gradients)
        else:
            wide = {n: widen(p, n, shapes[n], removal) for n, p in state.items()}
            masked, reference = with_gradients(without(wide))
    found, expected = _as_long(kept(output), kept(masked))
    return _difference([*floats(output), *found], [*floats(masked), *expected], gradients, reference)


def _as_long(found: Tensors, expected: Tensors) -> tuple[Tensors, Tensors]:
    """Caches with equally many tokens: eager mode forgets what is outside of a window."""
    if len(found) != len(expected):
        return found, expected
    pairs = zip(found, expected, strict=True)
    cut = [_last(a, b) if a.dim() == b.dim() == 4 else (a, b) for a, b in pairs]
    return [a for a, _ in cut], [b for _, b in cut]


def _last(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = min(a.shape[2], b.shape[2])
    return a[:, :, a.shape[2] - tokens :], b[:, :, b.shape[2] - tokens :]


def _difference(
    outputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
) -> Difference:
    if len(outputs) != len(expected):
        return Difference(float("inf"), float("inf"))
    absolute, relative = largest(list(zip(expected, outputs, strict=True)))
    pairs = gradient_pairs(reference, gradients)
    worst, worst_relative = largest(list(pairs.values()))
    where = max(pairs, key=lambda n: largest([pairs[n]])[0], default="") if worst else ""
    return Difference(absolute, relative, worst, worst_relative, where)
