"""By kind: a plan in which each kind of couples loses a share of its own. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ecospa_fx.census import Census
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import PlanError
from ecospa_fx.labels import Ids, Partition
from ecospa_fx.passes.plan import plan
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.removal import Removal


def plan_by_kind(
    graph: CouplingGraph,
    partition: Partition,
    removal: Removal,
    unit_scores: Ids,
    importance: Ids | None = None,
    *,
    ratios: Mapping[str, float],
    settings: PlanSettings | None = None,
    outside: int = 0,
    score: str = "",
) -> Plan:
    """Choose what goes, kind by kind in the order of their names.

    Each kind meets its share as :func:`~ecospa_fx.passes.plan.plan` meets one for all: it is below the asked
    size by less than one rung. Where an entry belongs to couples of two kinds (it lies on a row of one and on
    a column of the other), a kind counts what the kinds before it have left.

    Args:
        graph: the couples.
        partition: which components follow from others.
        removal: what is gone already.
        unit_scores: score of each unit, shape ``[components]``.
        importance: Fisher importance of each couple (Eq. 6), shape ``[couples]``.
        ratios: by kind, the fraction of the parameters held by its couples that goes, ``0 <= ratio < 1``.
            Other kinds stay as they are.
        settings: how each target is shared out; ``kinds`` does not count.
        outside: number of parameters of the model that the graph does not read.
        score: name of the score, for the record.

    Raises:
        PlanError: the model has no couples of a kind, a target is malformed or out of reach (the message
            names the kind), or whole heads may go, which takes from two kinds at once.
        GradientError: see :func:`~ecospa_fx.passes.plan.plan`.
    """
    settings = settings or PlanSettings()
    check_kinds(graph, ratios, settings)
    plans = []
    for kind in sorted(ratios):
        alone = replace(settings, kinds=(kind,))
        try:
            found = plan(graph, partition, removal, unit_scores, importance, ratio=ratios[kind],
                         settings=alone, outside=outside, score=score)  # fmt: skip
        except PlanError as error:
            raise PlanError(f"kind {kind!r}: {error}") from error
        plans.append(found)
        removal = found.removal
    return _merged(graph, plans, replace(settings, kinds=tuple(ratios)))


def check_kinds(graph: CouplingGraph, ratios: Mapping[str, float], settings: PlanSettings) -> None:
    """Refuse ratios by kind that do not fit the model.

    Raises:
        PlanError: there are no couples of a kind, no kind at all, or ``remove_heads`` is set.
    """
    found = sorted({c.kind for c in graph.couples})
    odd = [k for k in ratios if k not in found]
    if odd or not ratios:
        what = (
            f"of kind {', '.join(map(repr, odd))}" if odd else "to which an empty mapping of ratios applies"
        )
        raise PlanError(f"the model has no couples {what}; there are {', '.join(found) or 'none'}")
    if settings.remove_heads:
        raise PlanError(
            "a whole head takes its queries, keys, values and outputs along: with remove_heads give one "
            "ratio for all kinds"
        )


def held_by(graph: CouplingGraph, partition: Partition, removal: Removal, kind: str) -> int:
    """Number of parameters that couples of ``kind`` hold once ``removal`` is gone."""
    census = Census(graph, partition, removal, (kind,))
    return census.coupled(census.dead)


def _merged(graph: CouplingGraph, plans: Sequence[Plan], settings: PlanSettings) -> Plan:
    place = {c.name: i for i, c in enumerate(graph.couples)}
    losses = sorted((loss for p in plans for loss in p.losses), key=lambda loss: place[loss.couple])
    first, last = plans[0], plans[-1]
    held, left = sum(p.coupled_before for p in plans), sum(p.coupled_after for p in plans)
    sizes = (first.params_before, last.params_after, held, left)
    return Plan(last.removal, tuple(losses), *sizes, settings, last.score)
