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
        self.bundle = graph.bundle_of[census.segments]
        self.size = np.bincount(graph.segment_of[census.units], minlength=len(graph.bundle_of))[
            census.segments
        ]
        self.ids = self._droppable()
        self.head = self._heads()
        self.family = self._families()
        self.share = self._shares(strength)

    def units_of(self, slots: Ids) -> Ids:
        """Components that go with ``slots``: bool, shape ``[components]``."""
        graph, census = self.census.graph, self.census
        chosen = np.zeros(len(graph.bundle_of) + 1, bool)
        chosen[census.segments[np.isin(census.slots, slots)]] = True
        return np.asarray(chosen[graph.segment_of])

    def _droppable(self) -> Ids:
        """Slots whose finer components all die with the units under them."""
        partition, under = self.census.partition, self._slot_of_components()
        alive = ~self.census.dead[partition.fine]
        coarse, fine = partition.coarse[alive], partition.fine[alive]
        for _ in range(8):  # as deep as heads are nested
            low, high = np.full(len(under), len(under)), np.full(len(under), -1)
            np.minimum.at(low, coarse, under[fine])
            np.maximum.at(high, coarse, under[fine])
            fresh = (low == high) & (high >= 0) & (under != high)
            if not fresh.any():
                break
            under[fresh] = high[fresh]
        slots = np.unique(self.census.slots[self.census.slots >= 0])
        free = (partition.pin[slots] < 0) & ~self.census.dead[slots] & ~partition.chosen[slots]
        return np.asarray(slots[free & (under[slots] == slots)])

    def _slot_of_components(self) -> Ids:
        graph, census = self.census.graph, self.census
        slot = np.full(len(graph.bundle_of) + 1, -1)
        slot[census.segments] = census.slots
        under = np.full(census.partition.num_components, -1)
        under[census.units] = slot[graph.segment_of[census.units]]
        return under

    def _heads(self) -> Ids:
        """Place in ``ids`` of the head of each segment in play, -1 for none."""
        place = np.full(self.census.partition.num_components + 1, -1)
        place[self.ids] = np.arange(len(self.ids))
        return np.asarray(place[self.census.slots])

    def _families(self) -> Ids:
        """Number of the family of each head."""
        inside = self.head >= 0
        heads, bundles = self.head[inside], self.bundle[inside] + len(self.ids)
        size = len(self.ids) + int(self.bundle.max(initial=-1)) + 1
        links = coo_array((np.ones(len(heads), np.int8), (heads, bundles)), shape=(size, size))
        labels = connected_components(links, directed=False)[1][: len(self.ids)]
        return np.asarray(np.unique(labels, return_inverse=True)[1].ravel())

    def _shares(self, strength: Ids) -> Ids:
        """Each head's part of its family's strength; couples count relative to the others of their bundle."""
        value = np.nan_to_num(strength[self.census.couples], nan=np.inf)
        mean = (np.bincount(self.bundle, value) / np.maximum(np.bincount(self.bundle), 1))[self.bundle]
        usable = np.isfinite(mean) & (mean > 0)
        relative = np.where(usable, value / np.where(usable, mean, 1), 1.0)
        inside = self.head >= 0
        number = len(self.ids)
        total = np.bincount(self.head[inside], relative[inside], minlength=number)
        mean = total / np.maximum(np.bincount(self.head[inside], minlength=number), 1)
        return np.asarray(mean / np.maximum(np.bincount(self.family, mean), 1e-300)[self.family])

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

    def every_family(self, most: Ids) -> list[tuple[float, Ids]]:
        """Ways to take the same fraction of every family, none first: the fraction, and the slots.

        Args:
            most: how many units of each bundle may go with heads, shape ``[bundles]``.
        """
        sizes = np.bincount(self.family)
        steps = int(np.gcd.reduce(sizes)) if len(sizes) else 1
        order = np.lexsort((self.share, self.family))
        place = np.arange(len(order)) - np.searchsorted(self.family[order], self.family[order])
        allowed = self._droppable_count(most)
        return [
            (step / steps, self.ids[order[place < (sizes * step // steps)[self.family[order]]]])
            for step in range(steps)
            if (sizes * step // steps <= allowed).all()
        ]

    def _droppable_count(self, most: Ids) -> Ids:
        """How many heads of each family may go: all but one, and within the limits of their bundles."""
        count = np.bincount(self.family) - 1
        inside = self.head >= 0
        family, bundle = self.family[self.head[inside]], self.bundle[inside]
        largest = np.zeros((len(count), len(most)), np.int64)
        np.maximum.at(largest, (family, bundle), self.size[inside])
        family, bundle = np.nonzero(largest)
        np.minimum.at(count, family, most[bundle] // largest[family, bundle])
        return np.asarray(count)
