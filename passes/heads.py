"""Heads: which whole heads (or KV groups) go, before single units do."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ecospa_fx.census import Census
from ecospa_fx.labels import Ids


class Heads:
    """The heads of a model that could go as a whole.

    A head can go only if everything under it is a unit in play: with its last value unit its query and key
    units are dead code, so QK and VO of a head go together. Heads that share bundles (the heads of a layer;
    of all layers, where they share one position bias) are a *family*, of which one head always stays.

    Args:
        census: counts of the present model.
        strength: of each couple: Fisher importance (Eq. 6), or another measure that can be compared.
    """

    def __init__(self, census: Census, strength: Ids) -> None:
        self.census = census
        graph = census.graph
        slots = np.array([c.slot for c in graph.couples] + [-1])
        self.slot = np.full(census.partition.num_components, -1)
        self.slot[census.units] = slots[graph.couple_of[census.units]]
        self.bundle = np.full(len(self.slot), -1)
        self.bundle[census.units] = graph.bundle_of[graph.segment_of[census.units]]
        self.ids = self._droppable()
        self.family = self._families()
        self.share = self._shares(strength)

    def _droppable(self) -> Ids:
        """Slots whose finer components all die with the units under them."""
        partition = self.census.partition
        under = self.slot.copy()
        for _ in range(8):
            low, high = np.full(len(under), len(under)), np.full(len(under), -1)
            alive = ~self.census.dead[partition.fine]
            np.minimum.at(low, partition.coarse[alive], under[partition.fine[alive]])
            np.maximum.at(high, partition.coarse[alive], under[partition.fine[alive]])
            same = (low == high) & (high >= 0)
            if (under[same] == high[same]).all():
                break
            under[same] = high[same]
        slots = np.unique(self.slot[self.slot >= 0])
        free = (partition.pin[slots] < 0) & ~self.census.dead[slots]
        return np.asarray(slots[free & (under[slots] == slots)])

    def _families(self) -> Ids:
        """Number of the family of each head."""
        size = len(self.slot)
        units = self.census.units[np.isin(self.slot[self.census.units], self.ids)]
        edges = np.unique(np.stack([self.slot[units], self.bundle[units] + size]), axis=1)
        shape = (size + int(self.bundle.max(initial=0)) + 1,) * 2
        links = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=shape)
        return np.unique(connected_components(links, directed=False)[1][self.ids], return_inverse=True)[
            1
        ].ravel()

    def _shares(self, strength: Ids) -> Ids:
        """Each head's part of its family's strength; couples count relative to the others of their bundle."""
        graph = self.census.graph
        units = self.census.units
        couples, first = np.unique(graph.couple_of[units], return_index=True)
        bundle, slot = self.bundle[units[first]], self.slot[units[first]]
        value = np.nan_to_num(strength[couples], nan=np.inf)
        mean = np.bincount(bundle, value) / np.maximum(np.bincount(bundle), 1)
        usable = np.isfinite(mean[bundle]) & (mean[bundle] > 0)
        relative = np.where(usable, value / np.where(usable, mean[bundle], 1), 1.0)
        size = len(self.slot)
        inside = slot >= 0
        total = np.bincount(slot[inside], relative[inside], minlength=size)
        head = (total / np.maximum(np.bincount(slot[inside], minlength=size), 1))[self.ids]
        share: Ids = head / np.maximum(np.bincount(self.family, head), 1e-300)[self.family]
        return share

    def order(self, most: Ids, threshold: float) -> tuple[Ids, int]:
        """Heads in the order in which they go.

        Args:
            most: how many units of each bundle may go with heads, shape ``[bundles]``.
            threshold: heads beyond this cumulative share of their family are weak (Algorithm 1's θ).

        Returns:
            Slots, weakest first, and how many of them are weak.
        """
        order = np.lexsort((self.share, self.family))
        family, share = self.family[order], self.share[order]
        start = np.searchsorted(family, family)
        total = np.cumsum(share)
        gone = total - (total - share)[start]
        place = np.arange(len(order)) - start
        stays = place >= self._droppable_count(most)[family]
        weak = (gone <= 1 - threshold) & ~stays
        rank = np.lexsort((gone, ~weak))
        rank = rank[~stays[rank]]
        return self.ids[order[rank]], int(weak.sum())

    def _droppable_count(self, most: Ids) -> Ids:
        """How many heads of each family may go: all but one, and within the limits of their bundles."""
        count = np.bincount(self.family) - 1
        head = np.full(len(self.slot), -1)
        head[self.ids] = self.family
        units = self.census.units[self.slot[self.census.units] >= 0]
        units = units[head[self.slot[units]] >= 0]
        family, bundle = head[self.slot[units]], self.bundle[units]
        pairs, size = np.unique(np.stack([family, bundle]), axis=1, return_counts=True)
        per_head = size // np.bincount(self.family)[pairs[0]]
        np.minimum.at(count, pairs[0], most[pairs[1]] // np.maximum(per_head, 1))
        return count

    def units_of(self, slots: Ids) -> Ids:
        """Components that go with ``slots``: bool, shape ``[components]``."""
        chosen = np.zeros(len(self.slot) + 1, bool)
        chosen[slots] = True
        return np.asarray(chosen[self.slot])
