"""Layouts: where the surviving entries of a value lie once the dead ones are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ecospa_fx.arrays import along
from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import Ids, Value


@dataclass(frozen=True, eq=False)
class Layout:
    """The dense index of every physical index, axis by axis.

    Attributes:
        dense: sizes before the removal (hints for symbolic ones).
        index: for each axis that shrinks or could, an integer array of the value's rank: along the axis
            itself it has the physical size, along axes that it depends on (other heads keep other
            dims) their physical sizes, elsewhere 1. An axis comes after those that it depends on.
    """

    dense: tuple[int, ...]
    index: Mapping[int, Ids]

    @property
    def shape(self) -> tuple[int, ...]:
        """Physical sizes."""
        return tuple(self.index[a].shape[a] if a in self.index else n for a, n in enumerate(self.dense))

    def at(self, axis: int) -> Ids:
        """Dense indices along ``axis``, as an array of the value's rank."""
        if axis in self.index:
            return self.index[axis]
        return along(np.arange(self.dense[axis]), len(self.dense), axis)

    def changed(self, axis: int) -> bool:
        """Whether ``axis`` is smaller than before."""
        return self.shape[axis] != self.dense[axis]


def layout_of(value: Value, dead: Ids) -> Layout:
    """Compact ``value``.

    Outer axes (those with label arrays of their own) are compacted first; an array over several axes
    then selects along its one remaining axis, row by row.

    Args:
        value: the value with its dense labels.
        dead: bool, shape ``[labels]``.

    Raises:
        RewriteError: the survivors do not form a box.
    """
    index: dict[int, Ids] = {}
    for array in sorted(value.arrays, key=lambda a: (len(a.axes), min(a.axes, default=0))):
        alive = _gathered(~dead[array.ids], array.axes, index)
        rest = sorted(array.axes - index.keys())
        for axis in rest[:-1]:
            index[axis] = _full(value, axis)
        if rest:
            index[rest[-1]] = _select(alive, rest[-1])
        elif not alive.all():
            raise RewriteError(f"survivors of a value of shape {value.shape} do not form a box")
    return Layout(value.shape, index)


def _gathered(alive: Ids, axes: frozenset[int], index: Mapping[int, Ids]) -> Ids:
    """``alive`` on the axes that are compacted already."""
    for axis in (a for a in index if a in axes):
        at = index[axis]
        if 0 in at.shape:
            raise RewriteError("nothing is left along an axis")
        shape = [
            n if a == axis else max(n, m) for a, (n, m) in enumerate(zip(at.shape, alive.shape, strict=True))
        ]
        if any(n not in (1, shape[a]) for a, n in enumerate(at.shape)):
            raise RewriteError("label arrays of one value are nested in more than one way")
        target = [shape[a] if a != axis else alive.shape[a] for a in range(len(shape))]
        alive = np.take_along_axis(np.broadcast_to(alive, target), np.broadcast_to(at, shape), axis)
    return alive


def _full(value: Value, axis: int) -> Ids:
    return along(np.arange(value.shape[axis]), value.rank, axis)


def _select(alive: Ids, axis: int) -> Ids:
    """Indices of the true entries along ``axis``; every row must have equally many."""
    counts = alive.sum(axis, keepdims=True)
    if counts.size == 0:
        raise RewriteError("nothing is left along an axis")
    width = int(counts.flat[0])
    if (counts != width).any():
        raise RewriteError(f"rows keep different counts ({counts.min()} to {counts.max()}) along one axis")
    order = np.argsort(~alive, axis=axis, kind="stable")
    kept: Ids = np.take(order, np.arange(width), axis)
    return regular(kept, axis)


def regular(kept: Ids, axis: int) -> Ids:
    """Size 1 along the axes on which the selection does not depend."""
    for other in range(kept.ndim):
        first = np.take(kept, [0], other) if kept.shape[other] else kept
        if other != axis and kept.shape[other] > 1 and (kept == first).all():
            kept = first
    return kept
