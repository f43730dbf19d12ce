"""Level: heads that keep different counts get equal widths, by entries that stay zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.labels import Ids, LabelArray, Partition, Value
from ecospa_fx.program import Analysis


def level(graph: CouplingGraph, analysis: Analysis, dead: Ids) -> Ids:
    """Labels that are gone from the shapes of the graph.

    A tensor ``[..., heads, dims]`` is a box. Where heads keep different counts, the narrow ones carry as many
    of their removed dims along as the widest one needs; these are zero, as in the masked model.

    Args:
        graph: the couples; segments of one bundle are to be equally wide.
        analysis: the labels of every value.
        dead: labels that are gone from the parameters, bool, shape ``[labels]``.

    Returns:
        ``dead`` itself where nothing is missing, else fewer labels.
    """
    partition = analysis.partition
    gone = np.zeros(partition.num_components, bool)
    gone[partition.component[dead]] = True
    absent, boxes = gone, list(_boxes(analysis))
    carried = _by_segment(graph, partition, gone)
    while len(carried) or len(carried := _by_row(boxes, absent)):
        absent = absent & (graph.segment_of >= 0)
        absent[carried] = False
        absent, carried = partition.close(absent), carried[:0]
    return dead if absent is gone else np.asarray(absent[partition.component])


def _by_segment(graph: CouplingGraph, partition: Partition, gone: Ids) -> Ids:
    """Units that are gone, and that make the segments of each bundle equally wide again."""
    segments, bundles = graph.segment_of, graph.bundle_of
    alive = np.bincount(segments[(segments >= 0) & ~gone], minlength=len(bundles))
    widest = np.zeros(int(bundles.max(initial=-1)) + 1, np.int64)
    np.maximum.at(widest, bundles, alive)
    missing = np.where(_whole(graph, partition, gone, alive), 0, widest[bundles] - alive)
    dead = np.flatnonzero((segments >= 0) & gone)
    dead = dead[np.argsort(segments[dead], kind="stable")]
    place = np.arange(len(dead)) - np.searchsorted(segments[dead], segments[dead])
    return np.asarray(dead[place < missing[segments[dead]]])


def _whole(graph: CouplingGraph, partition: Partition, gone: Ids, alive: Ids) -> Ids:
    """Segments that go with their whole head: the row leaves the box."""
    headless = np.zeros(len(graph.bundle_of), bool)
    fine = partition.fine[gone[partition.coarse]]
    fine = fine[graph.segment_of[fine] >= 0]
    headless[graph.segment_of[fine]] = True
    return np.asarray(headless & (alive == 0))


@dataclass(frozen=True, eq=False)
class _Box:
    """Components of a joint array, ``[rows, width]``, and of the outer indices of each row."""

    components: Ids
    outer: tuple[Ids, ...]


def _boxes(analysis: Analysis) -> Iterator[_Box]:
    seen: set[Any] = set()
    for value in analysis.leaves():
        for array in value.arrays:
            outer = [a for a in value.arrays if a.axes < array.axes]
            key = (id(array.ids), *(id(a.ids) for a in outer))
            if len(array.axes) > 1 and key not in seen:
                seen.add(key)
                yield _box(analysis.partition, value, array, outer)


def _box(partition: Partition, value: Value, array: LabelArray, outer: list[LabelArray]) -> _Box:
    inner = value.inner(array)
    shape = [n for axis, n in enumerate(array.ids.shape) if axis != inner]

    def per_row(ids: Ids) -> Ids:
        return np.broadcast_to(ids.take(0, inner), shape).ravel()

    rows = np.moveaxis(array.ids, inner, -1).reshape(-1, array.ids.shape[inner])
    above = (a for a in outer if inner not in a.axes)
    return _Box(partition.component[rows], tuple(partition.component[per_row(a.ids)] for a in above))


def _by_row(boxes: list[_Box], absent: Ids) -> Ids:
    """One more unit for each row that is narrower than the widest of its box."""
    found = [np.zeros(0, np.int64)]
    for box in boxes:
        alive = ~absent[box.components]
        kept = np.logical_and.reduce([~absent[o] for o in box.outer], initial=True)
        counts = np.where(kept, alive.sum(1), -1)
        short = np.flatnonzero((counts < counts.max(initial=-1)) & (counts >= 0))
        found.append(box.components[short, alive[short].argmin(1)])
    return np.unique(np.concatenate(found))
