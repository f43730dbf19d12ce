"""Bounds: how far each bundle may go, and what to say when that is not far enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from ecospa_fx.census import Census, rows_per_unit
from ecospa_fx.coupling import DEFAULT_KINDS, Couple
from ecospa_fx.errors import CoupleError, EcoSpaError, PlanError
from ecospa_fx.labels import Ids
from ecospa_fx.ladder import Bounds, bundle_depths
from ecospa_fx.plan import PlanSettings
from ecospa_fx.suggestion import did_you_mean

KINDS = (*DEFAULT_KINDS, "expert", "residual")


class Limits:
    """Minimum widths, multiples and limits of every bundle.

    Args:
        census: counts of the present model.
        settings: what the user asked for.

    Raises:
        PlanError: a kind or a limit names nothing in the model.
    """

    def __init__(self, census: Census, settings: PlanSettings) -> None:
        self.census = census
        self.settings = settings
        self.graph = census.graph
        self.bundles = int(self.graph.bundle_of.max(initial=-1)) + 1
        self._check_kinds()
        self.limit = self._limits(settings.limits)
        self.rows = self._rows()

    def _check_kinds(self) -> None:
        known = {*KINDS, *(c.kind for c in self.graph.couples)}
        odd = [k for k in self.settings.kinds if k not in known]
        if odd:
            raise PlanError(
                f"unknown kinds {', '.join(map(repr, odd))}; there are {', '.join(sorted(known))}"
            )

    def _limits(self, limits: Mapping[str, float]) -> Ids:
        """The most of its dense units that each bundle may lose, shape ``[bundles]``."""
        limit = np.ones(self.bundles)
        for pattern, most in limits.items():
            found = [c for c in self.graph.couples if _fits(pattern, c)]
            if not found:
                names = [*(c.name for c in self.graph.couples), *KINDS]
                raise PlanError(f"limit {pattern!r} fits no couple{did_you_mean(pattern, names)}")
            units = np.concatenate([c.units for c in found])
            np.minimum.at(limit, self.graph.bundle_of[self.graph.segment_of[units]], most)
        return limit

    def _rows(self) -> Ids:
        """Rows per unit of each bundle."""
        rows = np.full(self.bundles, np.iinfo(np.int64).max)
        if self.settings.min_width > 1 or self.settings.round_to > 1:
            np.minimum.at(rows, self.graph.bundle_of, rows_per_unit(self.graph))
        return np.where(rows == np.iinfo(np.int64).max, 1, rows)

    def units_left(self) -> Ids:
        """How many units of each bundle may still go under the limits, shape ``[bundles]``."""
        bundle_of = self.graph.bundle_of
        every = self.graph.segment_of[self.graph.segment_of >= 0]
        dense = np.bincount(bundle_of[every], minlength=self.bundles)
        alive = np.bincount(bundle_of[self.graph.segment_of[self.census.units]], minlength=self.bundles)
        left = np.floor(self.limit * dense + 1e-9) - (dense - alive)
        return np.asarray(np.maximum(left, 0), np.int64)

    def steps(self, left: Ids) -> Bounds:
        """How far each bundle may go once only the units ``left`` are there (whole heads went before)."""
        bundle = self.graph.bundle_of
        heads = np.bincount(bundle[np.unique(self.graph.segment_of[left])], minlength=self.bundles)
        now = np.bincount(bundle[self.graph.segment_of[self.census.units]], minlength=self.bundles)
        went = now - np.bincount(bundle[self.graph.segment_of[left]], minlength=self.bundles)
        allowed = np.maximum(self.units_left() - went, 0) // np.maximum(heads, 1)
        width = bundle_depths(self.census, left)
        least = np.maximum(-(-self.settings.min_width // self.rows), 1)
        for segment, count in self.graph.least.items():
            least[bundle[segment]] = max(least[bundle[segment]], count)
        return Bounds(np.clip(np.minimum(width - least, allowed), 0, None), *self._pace(width))

    def _pace(self, width: Ids) -> tuple[Ids, Ids]:
        """Steps end where the kept rows are a multiple of ``round_to``.

        Where a couple has several segments (rotated and other dims of a head), the sum of their rows counts:
        the widest segment makes up for the others, which move in whole multiples.
        """
        round_to = self.settings.round_to
        pace = round_to // np.gcd(round_to, self.rows)
        offset = np.zeros(self.bundles, np.int64)
        for group in self._companions():
            rows = self.rows[group] * width[group]
            widest = group[np.argmax(rows)]
            rest = int(rows.sum() - rows.max())
            ends = [
                r
                for r in range(int(pace[widest]))
                if (rest + (width[widest] - r) * self.rows[widest]) % round_to == 0
            ]
            offset[widest] = -ends[0] if ends else 0
        return offset, pace

    def _companions(self) -> list[Ids]:
        """Bundles that make up the width of the same couples."""
        if self.settings.round_to == 1:
            return []
        groups = {
            tuple(np.unique(self.graph.bundle_of[self.graph.segment_of[c.units]])) for c in self.graph.couples
        }
        return [np.array(g) for g in sorted(groups)]


def _fits(pattern: str, couple: Couple) -> bool:
    if pattern in (couple.kind, couple.name):
        return True
    escaped = pattern.replace("[", "[[]")
    names = [couple.name, couple.name.split("[")[0], *(w.parameter for w in couple.weights)]
    return any(fnmatchcase(n, escaped) for n in names)


def out_of_reach(census: Census, floor: Ids, ratio: float | None, outside: int) -> EcoSpaError:
    """The error that says what the most is, and what holds the rest.

    Args:
        census: counts of the present model.
        floor: components that are gone once all that may go has gone.
        ratio: what was asked for; None where a size was.
        outside: parameters that the graph does not read.
    """
    if not census.graph.couples:
        return CoupleError(f"the model has no couples, so nothing can go: {_frozen(census)}")
    held, gone = census.coupled(census.dead), census.params(census.dead) - census.params(floor)
    if not held:
        return PlanError(
            f"no couple of the kinds in play has units left: {', '.join(_kinds(census.graph.couples))}"
        )
    if ratio is None:
        rest = census.sizes(floor)
        head = f"target_params is out of reach: {census.params(floor) + outside:,} parameters stay at least"
    else:
        rest = census.sizes(floor) - census.sizes(census.gone)
        head = (
            f"ratio {ratio:g} is out of reach: {gone:,} of {held:,} parameters can go, {_down(gone / held)}"
        )
    largest = [i for i in np.argsort(-rest, kind="stable")[:5] if rest[i]]
    names = list(census.graph.shapes)
    lines = [f"  {names[i]}: {rest[i]:,} ({_holder(census, names[i])})" for i in largest]
    lines += [f"  parameters that the graph does not read: {outside:,}"] * bool(outside and ratio is None)
    return PlanError("\n".join([f"{head}; what holds most of the rest:", *lines]))


def _down(share: float) -> str:
    return f"a ratio of {np.floor(share * 1e4) / 1e4:.4f} at most"


def _kinds(couples: Sequence[Couple]) -> list[str]:
    return sorted({c.kind for c in couples})


def _holder(census: Census, name: str) -> str:
    """Why a parameter cannot become smaller."""
    kinds = _kinds([c for c in census.graph.couples if any(w.parameter == name for w in c.weights)])
    moving = any(
        a.parameter == name and (census.gone[a.components] & ~census.dead[a.components]).any()
        for a in census.graph.axes
    )
    if moving:
        taken = "as many experts as each token takes, " if "expert" in kinds and census.graph.least else ""
        return f"{taken}minimum width, round_to or a limit"
    if kinds:
        return f"only couples of kind {', '.join(kinds)} hold it, which are not in play"
    return next(
        (f"axis {f.axis} frozen: {f.reason}" for f in census.graph.frozen if f.parameter == name), "no couple"
    )


def _frozen(census: Census) -> str:
    """Every reason why an axis is frozen, with the first axis that it holds."""
    reasons = {str(f.reason): f for f in reversed(census.graph.frozen)}
    return (
        "; ".join(f"{f.parameter} axis {f.axis}: {r}" for r, f in reversed(reasons.items()))
        or "no labelled axis"
    )
