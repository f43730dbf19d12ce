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

Prepare = Callable[[Mapping[str, Any]], dict[str, Any]]


def preparation(model: nn.Module, inputs: Mapping[str, Any]) -> Prepare:
    """The function from a call's arguments to those of the graph.

    Args:
        model: the original module.
        inputs: one call's arguments by name.
    """

    def prepare(named: Mapping[str, Any]) -> dict[str, Any]:
        return _precomputed(model, named)

    full = prepare(inputs)
    changed = any(value is not inputs.get(name) for name, value in full.items())
    return prepare if changed else dict


def _precomputed(model: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    full = dict(named)
    try:
        from transformers import PreTrainedModel
        from transformers.exporters import utils
    except ImportError:
        return full
    if any(isinstance(m, PreTrainedModel) for m in model.modules()):
        with torch.no_grad():
            utils.precompute_export_inputs(model, full)
            _add_positions(model, full)
    return full


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
