"""Counts: how many parameters and units a model holds once some of its components are gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecospa_fx.coupling import DEFAULT_KINDS, CouplingGraph, ParameterAxis
from ecospa_fx.labels import Ids, Partition
from ecospa_fx.removal import Removal


class Census:
    """Exact counts for one model in its present state, without a loop over indices.

    Args:
        graph: the couples.
        partition: which components follow from others.
        removal: what is gone already.
        kinds: kinds of couples in play; all others are left alone.

    Attributes:
        dead: components that are gone already, bool, shape ``[components]``.
        units: component ids of the units in play that are still there.
        gone: ``dead`` once every unit in play is gone too.
        segments: the segments that these units form, shape ``[segments in play]``.
        couples: the couple of each of them, same shape.
        slots: its head's component, -1 without heads, same shape.
    """

    def __init__(self, graph: CouplingGraph, partition: Partition, removal: Removal,
                 kinds: Sequence[str] = DEFAULT_KINDS) -> None:  # fmt: skip
        self.graph = graph
        self.partition = partition
        self.removal = removal
        self.dead = partition.close(dead_components(graph, removal))
        self.units = np.flatnonzero(units_of_kinds(graph, kinds) & ~self.dead)
        gone = self.dead.copy()
        gone[self.units] = True
        self.gone = partition.close(gone)
        owner = np.full(len(graph.bundle_of), -1)
        owner[graph.segment_of[self.units]] = graph.couple_of[self.units]
        self.segments = np.flatnonzero(owner >= 0)
        self.couples = owner[self.segments]
        self.slots = np.array([c.slot for c in graph.couples], np.int64)[self.couples]
        self._moving = self._moving_axes()
        self._components = np.concatenate([np.zeros(0, np.int64), *(a.components for a in self._moving)])
        self._above = np.concatenate([np.zeros(0, np.int64), *map(self._experts_above, self._moving)])
        sizes = [len(a.components) for a in self._moving]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        self._names = {name: i for i, name in enumerate(graph.shapes)}
        self._owner = np.array([self._names[a.parameter] for a in self._moving], np.int64)
        self._fixed = self._fixed_sizes()

    def _moving_axes(self) -> list[ParameterAxis]:
        """Axes that may yet shrink; the places of a stack already count its rows."""
        found = [a for a in self.graph.axes if (self.gone[a.components] & ~self.dead[a.components]).any()]
        counted = {(a.parameter, a.stack.rows) for a in found if a.stack}
        return [a for a in found if (a.parameter, a.axis) not in counted]

    def _experts_above(self, axis: ParameterAxis) -> Ids:
        """The expert that holds each place of a stack; elsewhere the place's own component."""
        if axis.stack:
            for other in self.graph.axes:
                if (other.parameter, other.axis) == (axis.parameter, axis.stack.rows):
                    rows = np.repeat(other.components, len(axis.components) // axis.rows)
                    return np.where(self.partition.chosen[rows], rows, axis.components)
        return axis.components

    def _fixed_sizes(self) -> Ids:
        """For each parameter the product of the present sizes of the axes that do not move."""
        moving = {(a.parameter, axis) for a in self._moving for axis in a.stack or (a.axis,)}
        sizes = []
        for name, dense in self.graph.shapes.items():
            shape = self.removal.shape(name, dense)
            sizes.append(int(np.prod([n for a, n in enumerate(shape) if (name, a) not in moving])))
        return np.array(sizes, np.int64)

    def close(self, dead: Ids) -> Ids:
        """``dead``, what is gone already, and what follows: bool, shape ``[components]``."""
        return self.partition.close(dead | self.dead)

    def sizes(self, dead: Ids) -> Ids:
        """Number of entries of each parameter, in the order of ``graph.shapes``.

        Args:
            dead: closed under :meth:`close`, bool, shape ``[components]``.
        """
        sizes = self._fixed.copy()
        np.multiply.at(sizes, self._owner, self._widths(dead))
        return sizes

    def _widths(self, dead: Ids) -> Ids:
        """Present number of places along each moving axis, those of all rows of a stack."""
        alive = np.concatenate([[0], np.cumsum(~(dead[self._components] | dead[self._above]))])
        return np.asarray(alive[self._starts[1:]] - alive[self._starts[:-1]], np.int64)

    def params(self, dead: Ids) -> int:
        """Number of entries of all parameters that the graph reads."""
        return int(self.sizes(dead).sum())

    def coupled(self, dead: Ids) -> int:
        """Number of entries that couples in play still hold: what would go with the last unit."""
        return self.params(dead) - self.params(self.gone)

    def unit_params(self, dead: Ids) -> Ids:
        """Entries that go with each component alone: float64, shape ``[components]``.

        An entry where two units cross (one on each axis) counts for both.
        """
        widths = self._widths(dead)
        across = self.sizes(dead)[self._owner] / np.maximum(widths, 1)
        weights = np.repeat(across, np.diff(self._starts)) * ~(dead[self._components] | dead[self._above])
        count = np.bincount(self._components, weights, minlength=self.partition.num_components)
        inside = self._above != self._components
        count += np.bincount(self._above[inside], weights[inside], minlength=len(count))
        return np.asarray(count, np.float64)

    def removal_of(self, dead: Ids) -> Removal:
        """The removed indices of every parameter axis, over all rounds."""
        return removal_of(self.graph, dead)


def removal_of(graph: CouplingGraph, dead: Ids) -> Removal:
    """The removed indices of every parameter axis.

    Args:
        graph: the couples.
        dead: components that are gone, and what follows from them, bool, shape ``[components]``.
    """
    removed: dict[str, dict[int, Ids]] = {}
    for axis in graph.axes:
        gone = np.flatnonzero(dead[axis.components])
        if len(gone):
            removed.setdefault(axis.parameter, {})[axis.axis] = gone
    shapes = {name: graph.shapes[name] for name in removed}
    stacked = {a.parameter: a.stack for a in graph.axes if a.stack and a.axis in removed.get(a.parameter, {})}
    return Removal(shapes, removed, stacked)


def units_of_kinds(graph: CouplingGraph, kinds: Sequence[str]) -> Ids:
    """Whether each component is a unit of a couple of ``kinds``: bool, shape ``[components]``."""
    chosen = np.array([c.kind in kinds for c in graph.couples] + [False])
    return np.asarray(chosen[graph.couple_of])


def dead_components(graph: CouplingGraph, removal: Removal) -> Ids:
    """Components of which an index is gone: bool, shape ``[components]``.

    Coarse components that own no parameter entry (heads) follow by ``partition.close``.
    """
    dead = np.zeros(len(graph.couple_of), bool)
    for axis in graph.axes:
        gone = removal.removed.get(axis.parameter, {}).get(axis.axis)
        if gone is not None:
            dead[axis.components[gone]] = True
    return dead


def rows_per_unit(graph: CouplingGraph) -> Ids:
    """How many rows of a head's (or layer's) width one unit of each segment takes, shape ``[segments]``.

    A rotate-half RoPE pair takes 2. It is the least number of indices that a unit has on any of its weights;
    queries and keys in one fused weight cannot be told apart here and count as 1, which divides the truth.
    """
    rows = np.full(len(graph.bundle_of), np.iinfo(np.int64).max)
    for axis in graph.axes:
        segments = graph.segment_of[axis.components]
        if axis.weight and (segments >= 0).any():
            _, first, count = np.unique(axis.components, return_index=True, return_counts=True)
            owner = segments[first]
            np.minimum.at(rows, owner[owner >= 0], count[owner >= 0])
    for couple in graph.couples:
        if couple.kind == "qk" and len({w.parameter for w in couple.weights}) == 1:
            rows[np.unique(graph.segment_of[couple.units])] = 1
    return rows
