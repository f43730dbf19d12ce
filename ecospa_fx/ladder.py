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


@dataclass(frozen=True, eq=False)
class Bounds:
    """How far, and where, each bundle may stop; all of shape ``[bundles]``.

    Attributes:
        depth: how many rungs may go.
        offset: a step may end where ``(rungs gone + offset) % pace == 0``.
        pace: see ``offset``.
    """

    depth: Ids
    offset: Ids
    pace: Ids


def weakest_first(census: Census, scores: Ids) -> Ids:
    """The units in play, segment by segment, and within each by score: shape ``[units]``."""
    segment = census.graph.segment_of[census.units]
    return np.asarray(census.units[np.lexsort((scores[census.units], segment))])


def build_ladder(census: Census, ranked: Ids, scores: Ids, bounds: Bounds) -> Ladder:
    """Put units on rungs.

    Args:
        census: counts of the present model.
        ranked: the units that are left, in the order of :func:`weakest_first`.
        scores: score of each unit, shape ``[components]``.
        bounds: how far each bundle may go.
    """
    graph = census.graph
    segment = graph.segment_of[ranked]
    rung = np.arange(len(ranked)) - np.searchsorted(segment, segment)
    depths = bundle_depths(census, ranked)
    inside = rung < depths[graph.bundle_of[segment]]
    units, rung, bundle = ranked[inside], rung[inside], graph.bundle_of[segment[inside]]
    first = np.concatenate([[0], np.cumsum(depths)])
    owner = np.repeat(np.arange(len(depths)), depths)
    place = np.arange(len(owner)) - first[owner]
    cell = first[bundle] + rung
    share = _shares(graph.couple_of[units], scores[units], cell, owner)
    density = _densities(census, units, scores[units], cell, len(owner))
    return Ladder(units, cell, owner, place, _step_ends(place, owner, first, bounds), share, density)


def bundle_depths(census: Census, units: Ids) -> Ids:
    """Rungs of each bundle: the units of its smallest segment that has any left."""
    graph = census.graph
    count = np.bincount(graph.segment_of[units], minlength=len(graph.bundle_of))
    most = len(graph.couple_of)
    depths = np.full(int(graph.bundle_of.max(initial=-1)) + 1, most)
    np.minimum.at(depths, graph.bundle_of[count > 0], count[count > 0])
    return np.where(depths == most, 0, depths)


def _step_ends(place: Ids, owner: Ids, first: Ids, bounds: Bounds) -> Ids:
    """For each cell the next one at which a step may end, -1 beyond the last."""
    cells = len(place)
    even = (place + 1 + bounds.offset[owner]) % bounds.pace[owner] == 0
    following = np.where(even & (place < bounds.depth[owner]), np.arange(cells), cells)
    following = np.minimum.accumulate(following[::-1])[::-1]
    return np.where(following < first[owner + 1], following, -1)


def _shares(couples: Ids, scores: Ids, cell: Ids, owner: Ids) -> Ids:
    """What each cell holds of its bundle's score, after each couple is normalised."""
    held = np.bincount(cell, normalised(couples, scores), minlength=len(owner))
    total = np.bincount(owner, held)[owner]
    return np.asarray(held / np.maximum(total, 1e-300))


def _densities(census: Census, units: Ids, scores: Ids, cell: Ids, cells: int) -> Ids:
    """Score of each cell per parameter that goes with it."""
    cost = np.bincount(cell, census.unit_params(census.dead)[units], minlength=cells)
    return np.asarray(np.bincount(cell, scores, minlength=cells) / np.maximum(cost, 1))


def normalised(groups: Ids, values: Ids) -> Ids:
    """``values`` as shares of the sum of their group; equal shares where that is zero.

    >>> normalised(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 0.0, 0.0]))
    array([0.25, 0.75, 0.5 , 0.5 ])
    """
    low = np.zeros(int(groups.max(initial=-1)) + 1)
    np.minimum.at(low, groups, values)  # negative scores are shifted
    values = values - low[groups]
    total = np.bincount(groups, values)[groups]
    equal = 1 / np.maximum(np.bincount(groups), 1)[groups]
    return np.where(total > 0, values / np.where(total > 0, total, 1), equal)
