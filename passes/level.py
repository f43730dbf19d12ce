"""Level: heads that keep different counts get equal widths, by entries that stay zero."""

from __future__ import annotations

import numpy as np

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.labels import Ids, Partition


def level(graph: CouplingGraph, partition: Partition, dead: Ids) -> Ids:
    """Labels that are gone from the shapes of the graph.

    A tensor ``[..., heads, dims]`` is a box. Where heads keep different counts, the narrow ones carry as many
    of their removed dims along as the widest one needs; these are zero, as in the masked model.

    Args:
        graph: the couples; segments of one bundle have to be equally wide.
        partition: which components follow from others.
        dead: labels that are gone from the parameters, bool, shape ``[labels]``.

    Returns:
        ``dead`` itself where nothing is missing, else fewer labels.
    """
    gone = np.zeros(partition.num_components, bool)
    gone[partition.component[dead]] = True
    carried = _carried(graph, partition, gone)
    if not len(carried):
        return dead
    units = graph.segment_of >= 0
    absent = gone & units
    absent[carried] = False
    return np.asarray(partition.close(absent)[partition.component])


def _carried(graph: CouplingGraph, partition: Partition, gone: Ids) -> Ids:
    """Units that are gone, and take part in shapes."""
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
    return headless & (alive == 0)
