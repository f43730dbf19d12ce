"""A change of basis: units of a head become mixtures of them, and the model computes the same; as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ecospa_fx.coupling import Couple, CouplingGraph


@dataclass(frozen=True)
class Block:
    """Where all units of a couple lie side by side on one axis of one parameter.

    Attributes:
        parameter: name.
        axis: its axis.
        start: index of the first unit.
        role: ``"out"`` where the units are made, ``"in"`` where they are summed over.
    """

    parameter: str
    axis: int
    start: int
    role: str


@dataclass(frozen=True)
class Field:
    """The units of one couple, as far as its weights go.

    Attributes:
        couple: its name.
        width: number of units.
        blocks: all places in parameters that hold them.
    """

    couple: str
    width: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Turn:
    """New values of weights that mix units, and of those that undo it.

    Attributes:
        values: by parameter name, in the present shape.
        turned: couples whose units are mixtures then.
        left: couples that stay as they are → the reason.
    """

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    turned: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take the values over, in place; the parameters stay the same objects."""
        for name, value in self.values.items():
            parameters[name].copy_(value)

    def __str__(self) -> str:
        others = f"; {len(self.left)} left as they are" if self.left else ""
        return f"the units of {len(self.turned)} couples in a balanced basis{others}"


def fields(graph: CouplingGraph, kinds: tuple[str, ...]) -> tuple[list[Field], dict[str, str]]:
    """Couples whose units lie side by side in all their weights; and others of these kinds, with the reason.

    Args:
        graph: the couples of a model from which nothing has been removed.
        kinds: kinds of couples.
    """
    found, odd = [], {}
    for couple in (c for c in graph.couples if c.kind in kinds and c.num_units > 1):
        blocks = _blocks(graph, couple)
        if blocks is None:
            odd[couple.name] = "its units do not lie side by side in all its weights"
        elif {b.role for b in blocks} != {"in", "out"}:
            odd[couple.name] = "no weight sums over its units"
        else:
            found.append(Field(couple.name, couple.num_units, tuple(blocks)))
    return found, odd


def _blocks(graph: CouplingGraph, couple: Couple) -> list[Block] | None:
    found = []
    for axis in graph.axes:
        at = np.flatnonzero(np.isin(axis.components, couple.units))
        if not len(at):
            continue
        lines = at.reshape(-1, couple.num_units) if len(at) % couple.num_units == 0 else at[:, None]
        whole = all(np.array_equal(axis.components[line], couple.units) for line in lines)
        if axis.rows > 1 or not whole or (np.diff(lines, axis=1) != 1).any():
            return None
        found += [Block(axis.parameter, axis.axis, int(line[0]), axis.role) for line in lines]
    return found
