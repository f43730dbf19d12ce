"""Allocate: in which order the rungs of all bundles go."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np

from ecospa_fx.labels import Ids
from ecospa_fx.ladder import Ladder
from ecospa_fx.plan import PlanSettings

Allocator = Callable[[Ladder, Ids, PlanSettings], Ids]


def order(ladder: Ladder, importance: Ids, settings: PlanSettings) -> Ids:
    """Cells in the order in which they go; those that must stay are left out.

    Args:
        ladder: the rungs.
        importance: Fisher importance of each bundle (Eq. 6), shape ``[bundles]``.
        settings: which allocation, and its parameters.
    """
    cells = np.flatnonzero(ladder.last >= 0)
    keys = ALLOCATORS[settings.allocation](ladder, importance, settings)[ladder.last[cells]]
    return cells[np.lexsort((ladder.rung[cells], ladder.bundle[cells], keys))]


def uniform(ladder: Ladder, importance: Ids, settings: PlanSettings) -> Ids:
    """The same fraction of every bundle."""
    sizes = np.bincount(ladder.bundle, minlength=1)
    return np.asarray((ladder.rung + 1) / sizes[ladder.bundle])


def ranked(ladder: Ladder, importance: Ids, settings: PlanSettings) -> Ids:
    """One ranking of all rungs by score per parameter; within a bundle never against its own order."""
    steps = ladder.steps
    keys = np.full(len(ladder.bundle), np.inf)
    total = np.concatenate([[0.0], np.cumsum(ladder.density)])
    begin = _begins(ladder, steps)
    keys[steps] = _rising((total[steps + 1] - total[begin]) / (steps + 1 - begin), ladder.bundle[steps])
    return keys


def _begins(ladder: Ladder, steps: Ids) -> Ids:
    """The first cell of each step."""
    previous = np.concatenate([[-1], steps[:-1]])
    return np.asarray(np.maximum(previous + 1, steps - ladder.rung[steps]))


def _rising(values: Ids, groups: Ids) -> Ids:
    """The running maximum within each group (groups are contiguous and ascending)."""
    rank = np.unique(values, return_inverse=True)[1].ravel()
    lifted = np.maximum.accumulate(rank + groups * (len(values) + 1)) - groups * (len(values) + 1)
    return np.asarray(np.unique(values)[lifted] if len(values) else values)


def ecospa(ladder: Ladder, importance: Ids, settings: PlanSettings) -> Ids:
    """Algorithm 1, turn by turn, until nothing is left to take.

    In each turn the fraction K of the bundles with the least importance loses its weakest rungs, until what
    it keeps holds no more than θ of the score it had; every bundle in the turn loses at least one step.
    The paper measures the importance anew in each epoch. Within one call gradients stand still, so the
    importance of what a bundle keeps is taken to follow its score: Î grows by (share of the score kept) /
    (share of the units kept).

    Returns:
        For each cell at which a step ends, the turn in which it goes and, as a fraction, its bundle's place.
    """
    keys = np.full(len(ladder.bundle), np.inf)
    state = _State(ladder, importance)
    turn = 0
    while len(open_ := state.open()):
        chosen = open_[: ceil(settings.top_k * len(open_))]
        start, end = state.take(chosen, settings.threshold)
        for place, (a, b) in enumerate(zip(start, end, strict=True)):
            keys[a:b] = turn + place / len(chosen)
        turn += 1
    return keys


class _State:
    """How far down each bundle is, in cells."""

    def __init__(self, ladder: Ladder, importance: Ids) -> None:
        bundles = len(importance)
        sizes = np.bincount(ladder.bundle, minlength=bundles)
        self.first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.sizes = np.maximum(sizes, 1)
        self.importance = np.where(np.isnan(importance), np.inf, importance)
        self.ladder = ladder
        self.steps = ladder.steps
        self.owner = ladder.bundle[self.steps]
        self.next = np.searchsorted(self.owner, np.arange(bundles))
        self.stop = np.searchsorted(self.owner, np.arange(bundles), side="right")
        self.gone = self._gone_after_step()
        self.goals = self.gone + 2 * self.owner  # ascending over all bundles
        self.at = self.first.copy()
        self.lost = np.zeros(bundles)

    def _gone_after_step(self) -> Ids:
        """Share of the bundle's score that is gone once each step is taken."""
        total = np.concatenate([[0.0], np.cumsum(self.ladder.share)])
        return np.asarray(total[self.steps + 1] - total[self.first[self.owner]])

    def open(self) -> Ids:
        """Bundles that can still lose a step, those of least importance first."""
        ready = np.flatnonzero(self.next < self.stop)
        kept_units = 1 - (self.at - self.first)[ready] / self.sizes[ready]
        now = self.importance[ready] * np.maximum(1 - self.lost[ready], 1e-12) / kept_units
        return ready[np.argsort(now, kind="stable")]

    def take(self, bundles: Ids, threshold: float) -> tuple[Ids, Ids]:
        """Let ``bundles`` go down to ``threshold`` of their score: the range of cells that each loses."""
        goal = 1 - threshold * (1 - self.lost[bundles])
        step = np.searchsorted(self.goals, goal + 2 * bundles - 1e-12)
        step = np.clip(step, self.next[bundles], self.stop[bundles] - 1)
        start, end = self.at[bundles], self.steps[step] + 1
        self.next[bundles], self.at[bundles], self.lost[bundles] = step + 1, end, self.gone[step]
        return start, end


ALLOCATORS: dict[str, Allocator] = {"ecospa": ecospa, "uniform": uniform, "global": ranked}
