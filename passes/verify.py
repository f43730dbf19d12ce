"""Verify: the compiled model against the masked original, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ecospa_fx.cache_layers import is_cache
from ecospa_fx.errors import InputError
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


def verify(
    compiled: Callable[[], Any],
    model: nn.Module,
    inputs: Mapping[str, Any],
    removal: Removal,
    shapes: Mapping[str, tuple[int, ...]],
    without: Callable[[Mapping[str, torch.Tensor]], Any] | None = None,
) -> Difference:
    """Run both models on one call, in evaluation mode, and compare.

    Dropout draws other random numbers for smaller tensors, so the training mode has no common oracle.

    Args:
        compiled: runs the compiled model on the inputs.
        model: the original module, whose parameters are the compiled model's.
        inputs: the call's arguments by name.
        removal: what is gone.
        shapes: dense shape of every parameter.
        without: where whole experts are gone, runs what the masked model computes then on its dense
            parameters (see :func:`~ecospa_fx.passes.without.without_experts`).

    Returns:
        The largest differences.

    Raises:
        InputError: the call brings a cache that is smaller than that of the masked model.
    """
    small = [n for n, v in inputs.items() if removal.removed and is_cache(v) and v.get_seq_length()]
    if small:
        raise InputError(
            f"{small[0]} came out of the smaller model, and the masked model needs one of dense width: "
            "verify the whole text in one call, without a cache"
        )
    inputs = fresh(inputs)  # the call fills the cache that it is given
    parameters = dict(model.named_parameters())
    state = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()}
    with repeatable(model):
        outputs = floats(compiled())
        gradients = projected_gradients(outputs, parameters)
    with repeatable(model):
        if without is None:
            expected = floats(call_masked(model, state, removal, shapes, inputs))
        else:
            expected = floats(without({n: widen(p, n, shapes[n], removal) for n, p in state.items()}))
        reference = projected_gradients(expected, state)
    return _difference(outputs, expected, gradients, reference)


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
