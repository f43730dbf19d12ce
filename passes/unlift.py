"""Unlift: from an exported program to one flat graph that reads the tensors of its owner by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from ecospa_fx.passes.cheaply import code_on_demand
from ecospa_fx.passes.normalise import functional, normalise, writes_through_views
from ecospa_fx.passes.once import canonical_names, tensors_of
from ecospa_fx.passes.persist import persist
from ecospa_fx.passes.unview import UnwritableError


def unlift(
    exported: ExportedProgram, owner: nn.Module, followed: bool
) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The graph in normal form, in which writes make new values where memory has several names.

    Args:
        exported: what ``torch.export`` returned.
        owner: the module whose names count.
        followed: its branches went as its example went.

    Returns:
        The graph, and the constants by name that the owner does not have.
    """
    if not writes_through_views(exported.graph):
        return _unlifted(exported, owner, followed)
    try:
        graph, constants = _unlifted(exported, owner, followed)
        persist(graph)
        return graph, constants
    except UnwritableError:
        return _unlifted(functional(exported), owner, followed)


def _unlifted(
    exported: ExportedProgram, owner: nn.Module, followed: bool
) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The graph with tensors under the first of their owner's names, and constants that the owner lacks."""
    with code_on_demand():
        module = exported.module(check_guards=False)
    names = {name for name, _ in tensors_of(owner)}
    aliases, constants = canonical_names(owner), {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            node.target = aliases.get(name, name)
            if name not in names:
                value = _attribute(module, name)
                if isinstance(value, torch.Tensor):
                    constants[name] = value
    return normalise(module, followed), constants


def _attribute(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module
