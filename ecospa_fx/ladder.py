"""The ladder: in every bundle, which units go first, second and so on, in equal counts over its segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecospa_fx.census import Census
from ecospa_fx.labels import Ids


@dataclass(frozen=True, eq=False)
class Ladder:
    """Rungs of all bundles in play.

    Rung ``j`` of a bundle is the ``j``-th weakest unit of each of its segments: they go together, so that all
    heads of a layer keep equal counts, each of its own indices. The rungs of all bundles stand in one array
    of *cells*, bundle by bundle.

    Attributes:
        units: component ids of the units on rungs, shape ``[units]``.
        cell: cell of each of them, shape ``[units]``.
        bundle: bundle of each cell, shape ``[cells]``.
        rung: rung of each cell within its bundle, shape ``[cells]``.
        last: the cell at which a step that takes this cell ends (with ``round_to``, several cells at once);
            -1 where the cell must stay. Shape ``[cells]``.
        share: what each cell holds of its bundle's score, each couple normalised (Eq. 9), shape ``[cells]``.
        density: raw score per parameter, shape ``[cells]``.
    """

    units: Ids
    cell: Ids
    bundle: Ids
    rung: Ids
    last: Ids
    share: Ids
    density: Ids

    @property
    def steps(self) -> Ids:
        """The cells at which steps end."""
        return np.flatnonzero(self.last == np.arange(len(self.last)))

    def taken(self, cells: Ids, components: int) -> Ids:
        """Components that go with ``cells`` (bool, shape ``[cells]``): bool, shape ``[components]``."""
        dead = np.zeros(components, bool)
        dead[self.units[cells[self.cell]]] = True
        return dead


def build_ladder(census: Census, dead: Ids, scores: Ids, depth: Ids, offset: Ids, pace: Ids) -> Ladder:
    """Sort the units that are left into rungs.

    Args:
        census: counts of the present model.
        dead: components that go before (whole heads), closed.
        scores: score of each unit, the least goes first, shape ``[components]``.
        depth: how many rungs of each bundle may go, shape ``[bundles]``.
        offset: a step may end where ``(rungs gone + offset) % pace == 0``, shape ``[bundles]``.
        pace: see ``offset``.
    """
    graph = census.graph
    units = census.units[~dead[census.units]]
    segment = graph.segment_of[units]
    units = units[np.lexsort((scores[units], segment))]
    segment = graph.segment_of[units]
    sizes = np.bincount(segment, minlength=len(graph.bundle_of))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rung = np.arange(len(units)) - starts[segment]
    bundle = graph.bundle_of[segment]
    rungs = bundle_depths(census, dead)
    first = np.concatenate([[0], np.cumsum(rungs)])
    on_ladder = rung < rungs[bundle]
    units, rung, bundle = units[on_ladder], rung[on_ladder], bundle[on_ladder]
    cell = first[bundle] + rung
    cells = int(first[-1])
    owner = np.repeat(np.arange(len(rungs)), rungs)
    place = np.arange(cells) - first[owner]
    last = _step_ends(place, owner, first, depth, offset, pace)
    held = np.bincount(cell, normalised(graph.couple_of[units], scores[units]), minlength=cells)
    share = held / np.maximum(np.bincount(owner, held, minlength=len(rungs)), 1e-300)[owner]
    cost = np.bincount(cell, census.unit_params(dead)[units], minlength=cells)
    density = np.bincount(cell, scores[units], minlength=cells) / np.maximum(cost, 1)
    return Ladder(units, cell, owner, place, last, share, density)


def bundle_depths(census: Census, dead: Ids) -> Ids:
    """Rungs of each bundle: the units of its smallest segment that is not gone as a whole."""
    graph = census.graph
    count = np.bincount(graph.segment_of[census.units[~dead[census.units]]], minlength=len(graph.bundle_of))
    depths = np.full(int(graph.bundle_of.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(depths, graph.bundle_of[count > 0], count[count > 0])
    depths[depths == np.iinfo(np.int64).max] = 0
    return depths


def normalised(groups: Ids, values: Ids) -> Ids:
    """``values`` as shares of the sum of their group; equal shares where that is zero."""
    low = np.zeros(int(groups.max(initial=-1)) + 1)
    np.minimum.at(low, groups, values)
    values = values - low[groups]
    total = np.bincount(groups, values)[groups]
    equal = 1 / np.maximum(np.bincount(groups), 1)[groups]
    return np.where(total > 0, values / np.where(total > 0, total, 1), equal)


def _step_ends(place: Ids, owner: Ids, first: Ids, depth: Ids, offset: Ids, pace: Ids) -> Ids:
    """For each cell the next one at which a step may end, -1 beyond the last."""
    cells = len(place)
    ends = (place < depth[owner]) & ((place + 1 + offset[owner]) % pace[owner] == 0)
    following = np.where(ends, np.arange(cells), cells)
    following = np.minimum.accumulate(following[::-1])[::-1] if cells else following
    inside = following < first[owner + 1] if cells else following
    return np.where(inside, following, -1) if cells else following
