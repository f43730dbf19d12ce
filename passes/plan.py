"""Plan: which units go, so that a target size is met. Nothing is changed."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from numbers import Integral, Real

import numpy as np

from ecospa_fx.census import Census, dead_components
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import GradientError, PlanError
from ecospa_fx.labels import Ids, Partition
from ecospa_fx.ladder import Ladder, build_ladder, weakest_first
from ecospa_fx.passes.allocate import order
from ecospa_fx.passes.bounds import Limits, out_of_reach
from ecospa_fx.passes.heads import Heads
from ecospa_fx.plan import CoupleLoss, Plan, PlanSettings
from ecospa_fx.removal import Removal


def plan(graph: CouplingGraph, partition: Partition, removal: Removal, unit_scores: Ids,
         importance: Ids | None = None, *, ratio: float | None = None, target_params: int | None = None,
         settings: PlanSettings | None = None, outside: int = 0, score: str = "") -> Plan:  # fmt: skip
    """Choose what goes.

    Units go rung by rung (:class:`~ecospa_fx.ladder.Ladder`), so that all heads of a layer keep equal counts.
    The plan is the first one on the way that is not above the asked size: it is below it by less than one
    rung, one unit of each couple of one bundle (with ``round_to``, one multiple of it).

    Args:
        graph: the couples.
        partition: which components follow from others.
        removal: what is gone already.
        unit_scores: score of each unit, the least goes first, shape ``[components]``.
        importance: Fisher importance of each couple (Eq. 6), shape ``[couples]``, NaN where unknown (such
            couples go last). The allocation ``"ecospa"`` needs it.
        ratio: fraction of the parameters held by the couples in play that goes, ``0 <= ratio < 1``.
        target_params: the whole model's size afterwards, instead.
        settings: how the target is shared out.
        outside: number of parameters of the model that the graph does not read.
        score: name of the score, for the record.

    Raises:
        PlanError: the target is malformed or out of reach, or the settings do not fit the model.
        GradientError: the allocation needs the importance of couples, and there is none.
        CoupleError: the model has no couples.
    """
    settings = settings or PlanSettings()
    census = Census(_in_bundles(graph, removal, settings), partition, removal, settings.kinds)
    _check_arrays(census, unit_scores, importance)
    limits = Limits(census, settings)
    start = census.params(census.dead)
    target = _target(census, outside, ratio, target_params)
    dead = census.dead
    if target < start:
        if settings.allocation == "ecospa" and importance is None:
            raise GradientError(
                "the allocation 'ecospa' needs the Fisher importance of the couples (Eq. 6): call backward() "
                "first or pass grads, or take allocation='uniform'"
            )
        strength = importance if importance is not None else _totals(census, unit_scores)
        dead = _Planner(census, limits, unit_scores, strength, settings).run(target, ratio, outside)
    return _result(census, dead, outside, settings, score)


def _in_bundles(graph: CouplingGraph, removal: Removal, settings: PlanSettings) -> CouplingGraph:
    """The graph; with ragged heads each segment goes its own way, but for those of one box of a parameter."""
    if settings.heads == "ragged":
        own = int(graph.bundle_of.max(initial=-1)) + 1 + np.arange(len(graph.bundle_of))
        own = np.where(graph.boxed, graph.bundle_of, own)
        return replace(graph, bundle_of=np.unique(own, return_inverse=True)[1].ravel())
    if settings.layout == "native":
        graph = replace(graph, bundle_of=_over_layers(graph))
    alive = (graph.segment_of >= 0) & ~dead_components(graph, removal)
    counts = np.bincount(graph.segment_of[alive], minlength=len(graph.bundle_of))
    most = np.zeros(int(graph.bundle_of.max(initial=-1)) + 1, np.int64)
    np.maximum.at(most, graph.bundle_of, counts)
    if ((counts != most[graph.bundle_of]) & (counts > 0)).any():
        raise PlanError(
            "layers keep different counts already, which no config says: go on with layout='free'"
            if settings.layout == "native"
            else "heads keep different counts already: go on with heads='ragged'"
        )
    return graph


def _over_layers(graph: CouplingGraph) -> Ids:
    """Bundles that hold the couples of one kind and width of all layers."""
    found: dict[tuple[object, ...], int] = {}
    bundle_of = graph.bundle_of.copy()
    for couple in graph.couples:
        if couple.kind not in HEADED:
            sizes = [len(graph.shapes[w.parameter]) for w in couple.weights]
            segments = np.unique(graph.segment_of[couple.units])
            key = (couple.kind, couple.num_units, len(segments), *sorted(sizes))
            for segment in segments:
                bundle_of[segment] = found.setdefault(key, int(bundle_of[segment]))
    return np.asarray(bundle_of)


HEADED = ("qk", "vo", "head")


@dataclass(frozen=True, eq=False)
class _Planner:
    census: Census
    limits: Limits
    scores: Ids
    strength: Ids
    settings: PlanSettings

    def run(self, target: int, ratio: float | None, outside: int) -> Ids:
        """The dead components of the plan."""
        dead = self._heads(target) if self.settings.remove_heads else self.census.dead
        ladder = self._ladder(dead)
        if self._size(self._floor(ladder, dead)) > target:
            raise out_of_reach(self.census, self._floor(ladder, dead), ratio, outside)
        cells = order(ladder, self._bundle_strength(), self.settings)
        return self._shortest(ladder, dead, cells, target)

    def _shortest(self, ladder: Ladder, dead: Ids, cells: Ids, target: int) -> Ids:
        """The shortest run of whole steps that reaches the target, by bisection on exact counts."""
        ends = np.concatenate([[0], np.flatnonzero(ladder.last[cells] == cells) + 1])

        def after(steps: int) -> Ids:
            return self._with(ladder, dead, cells[: ends[steps]])

        return after(bisect_left(range(len(ends) - 1), True, key=lambda n: self._size(after(n)) <= target))

    def _size(self, dead: Ids) -> int:
        return self.census.params(dead)

    @cached_property
    def ranked(self) -> Ids:
        """Units in play in the order in which each segment loses them."""
        ranked = weakest_first(self.census, self.scores)
        if self.settings.layout == "free":
            return ranked
        graph = self.census.graph
        headed = np.array([c.kind in HEADED for c in graph.couples])
        return np.asarray(ranked[~headed[graph.couple_of[ranked]]])

    def _ladder(self, dead: Ids) -> Ladder:
        left = self.ranked[~dead[self.ranked]]
        return build_ladder(self.census, left, self.scores, self.limits.steps(left))

    def _with(self, ladder: Ladder, dead: Ids, cells: Ids) -> Ids:
        chosen = np.zeros(len(ladder.last), bool)
        chosen[cells] = True
        return self.census.close(dead | ladder.taken(chosen, len(dead)))

    def _floor(self, ladder: Ladder, dead: Ids) -> Ids:
        """What is gone once every step has been taken."""
        return self._with(ladder, dead, np.flatnonzero(ladder.last >= 0))

    def _bundle_strength(self) -> Ids:
        """Mean importance of the couples of each bundle; unknown ones do not count."""
        bundle = self.census.graph.bundle_of[self.census.segments]
        value = self.strength[self.census.couples]
        known = ~np.isnan(value)
        total = np.bincount(bundle[known], value[known], minlength=self.limits.bundles)
        number = np.bincount(bundle[known], minlength=self.limits.bundles)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def _heads(self, target: int) -> Ids:
        """Weak heads that go as a whole; more of them if units alone cannot reach the target."""
        heads = Heads(self.census, self.strength)
        if self.settings.layout == "native":
            return self._heads_of_every_layer(heads, target)
        slots, weak = heads.order(self.limits.units_left(), self.settings.threshold)

        def without(count: int) -> Ids:
            return self.census.close(self.census.dead | heads.units_of(slots[:count]))

        def reaches(count: int) -> bool:
            dead = without(count)
            return self._size(self._floor(self._ladder(dead), dead)) <= target

        weak = next((n for n in range(weak, 0, -1) if self._size(without(n)) >= target), 0)
        if not reaches(weak):
            weak = bisect_left(range(len(slots)), True, lo=weak, key=reaches)
        return without(weak)

    def _heads_of_every_layer(self, heads: Heads, target: int) -> Ids:
        """The same fraction of the heads of every layer as of the whole; more if the rest cannot do it."""
        start = self._size(self.census.dead)
        steps = heads.every_family(self.limits.units_left())
        wanted = (start - target) / max(self.census.coupled(self.census.dead), 1)

        def without(step: int) -> Ids:
            return self.census.close(self.census.dead | heads.units_of(steps[step][1]))

        first = max((i for i, (share, _) in enumerate(steps) if share <= wanted), default=0)
        first = next(i for i in range(first, -1, -1) if not i or self._size(without(i)) >= target)
        for step in range(first, len(steps)):
            dead = without(step)
            if self._size(self._floor(self._ladder(dead), dead)) <= target:
                break
        return dead


def _totals(census: Census, scores: Ids) -> Ids:
    """Score per unit of each couple, where no Fisher importance is at hand."""
    couple = census.graph.couple_of[census.units]
    size = len(census.graph.couples)
    total = np.bincount(couple, scores[census.units], minlength=size)
    return total / np.maximum(np.bincount(couple, minlength=size), 1)


def _check_arrays(census: Census, scores: Ids, importance: Ids | None) -> None:
    expected = (census.partition.num_components,)
    if np.shape(scores) != expected:
        raise PlanError(f"unit scores have shape {np.shape(scores)}, not {expected}")
    odd = census.units[~np.isfinite(scores[census.units])]
    if len(odd):
        names = dict.fromkeys(census.graph.couples[c].name for c in census.graph.couple_of[odd])
        raise PlanError(f"unit scores are NaN or infinite in {', '.join(list(names)[:5])}")
    if importance is not None and np.shape(importance) != (len(census.graph.couples),):
        raise PlanError(f"importance has shape {np.shape(importance)}, not ({len(census.graph.couples)},)")


def _target(census: Census, outside: int, ratio: float | None, target_params: int | None) -> int:
    """Largest size, of the parameters that the graph reads, that fulfils the request."""
    if (ratio is None) == (target_params is None):
        given = "both" if ratio is not None else "neither"
        raise PlanError(f"give either ratio or target_params, and not {given}")
    if ratio is None:
        if not _is_number(target_params, Integral) or (size := int(target_params or 0)) <= 0:
            raise PlanError(f"target_params is {target_params!r}, not a whole number above zero")
        return size - outside
    if not _is_number(ratio, Real) or not 0 <= ratio < 1:
        raise PlanError(f"ratio is {ratio!r}, not in [0, 1)")
    return census.params(census.dead) - ceil(float(ratio) * census.coupled(census.dead) - 1e-6)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _result(census: Census, dead: Ids, outside: int, settings: PlanSettings, score: str) -> Plan:
    graph = census.graph
    number = len(graph.couples)
    kept = [np.bincount(graph.couple_of[census.units[~gone[census.units]]], minlength=number)
            for gone in (census.dead, dead)]  # fmt: skip
    losses = tuple(
        CoupleLoss(c.name, c.kind, c.num_units, int(before), int(after))
        for c, before, after in zip(graph.couples, *kept, strict=True)
        if c.kind in settings.kinds
    )
    before, after = census.params(census.dead), census.params(dead)
    held = census.coupled(census.dead)
    return Plan(census.removal_of(dead), losses, before + outside, after + outside,
                held, held - before + after, settings, score)  # fmt: skip
