"""Routers: who picks which experts, and what marks it in a graph.

Entries of a graph that number the experts (scores, numbers, counts) keep the dense numbering. Only where a
number picks a matrix does it change, and only where scores are compared does it count who is left. Markers
stand at these places: each returns what it is given, and a rewrite puts the operator there that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecospa_fx import ops
from ecospa_fx.labels import Reason


@dataclass(frozen=True)
class Router:
    """One choice among experts, which stand along axis 0 of stacked parameters.

    Attributes:
        number: its number in the program.
        name: common path of its experts, for messages.
        experts: how many there are.
        chosen: how many each token takes.
        parts: number of groups of which some are chosen first; 1 without any.
        least: how many experts have to stay in each group.
        stacks: the parameters that it picks from.
        refused: why all experts have to stay; None where they may go.
    """

    number: int
    name: str
    experts: int
    chosen: int
    parts: int
    least: int
    stacks: tuple[str, ...]
    refused: Reason | None = None


def router_logits(x: Tensor, number: int, experts: int) -> Tensor:
    """Marks the product whose last axis is the experts."""
    return x


def electable(x: Tensor, number: int, experts: int, parts: int) -> Tensor:
    """Marks scores ``[..., experts]`` or ``[..., parts, experts / parts]`` of which the highest are taken."""
    return x


def renumbered(ids: Tensor, number: int, experts: int) -> Tensor:
    """Marks numbers of experts that pick matrices."""
    return ids


def run_ends(ends: Tensor, number: int, experts: int) -> Tensor:
    """Marks where each expert's run of tokens ends, shape ``[experts]``."""
    return ends


MARKERS = (router_logits, electable, renumbered, run_ends, ops.stored)
COMPARED = (router_logits, electable)
"""The markers of scores, which are minus infinity for experts that are gone."""


def spread_logits(x: Tensor, places: Tensor, experts: int) -> Tensor:
    """``[..., kept]`` at ``places`` of ``[..., experts]``; no softmax sees the rest, minus infinity."""
    wide = x.new_full((*x.shape[:-1], experts), -torch.inf)
    return wide.index_copy(-1, places, x)
