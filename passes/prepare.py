"""Prepare: what a model computes from its integer inputs in Python, ahead of the graph.

transformers keeps such computations (positions of image patches, lengths of packed sequences) apart for
its own exporter; they run at every call, outside the graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ecospa_fx.origin import exporter, holds_pretrained

Prepare = Callable[[Mapping[str, Any]], dict[str, Any]]
Step = Callable[[nn.Module, dict[str, Any]], None]
"""Adds to a call's arguments, in place, what the graph takes besides."""


def preparation(model: nn.Module, inputs: Mapping[str, Any]) -> Prepare:
    """The function from a call's arguments to those of the graph.

    A step that these inputs do not suit (positions of images where there are none) is left out, here and
    at every later call: the model's forward does without it, or works the values out by itself.

    Args:
        model: the original module.
        inputs: one call's arguments by name.
    """
    useful, full = [], dict(inputs)
    for step in _steps(model):
        before, full = full, _after(step, model, full)
        if any(value is not before.get(name) for name, value in full.items()):
            useful.append(step)

    def prepare(named: Mapping[str, Any]) -> dict[str, Any]:
        full = dict(named)
        with torch.no_grad():
            for step in useful:
                step(model, full)
        return full

    return prepare if useful else dict


def _after(step: Step, model: nn.Module, named: dict[str, Any]) -> dict[str, Any]:
    """The arguments after a step; as they were where the step cannot take them."""
    full = dict(named)
    try:
        with torch.no_grad():
            step(model, full)
    except Exception:
        return named
    return full


def _steps(model: nn.Module) -> list[Step]:
    own = exporter() if holds_pretrained(model) else None
    return [own.utils.precompute_export_inputs, _add_positions] if own else []


def _add_positions(model: nn.Module, full: dict[str, Any]) -> None:
    """Positions on several axes, where a part of the model works them out from tokens and grids."""
    if (
        full.get("position_ids") is not None
        or "position_ids" not in inspect.signature(model.forward).parameters
    ):
        return
    index: Any = next((m.get_rope_index for m in model.modules() if hasattr(m, "get_rope_index")), None)
    if index is not None:
        accepted = inspect.signature(index).parameters.values()
        named = [p for p in accepted if p.kind is not p.VAR_KEYWORD]
        if all(full.get(p.name) is not None for p in named if p.default is p.empty):
            full["position_ids"] = index(**{p.name: full[p.name] for p in named if p.name in full})[0]
