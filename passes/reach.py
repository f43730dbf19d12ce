"""Reach: whether a schedule's target can be met, and the sizes between which it goes. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil

import numpy as np

from ecospa_fx.census import Census
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.labels import Partition
from ecospa_fx.passes.by_kind import check_kinds, held_by, plan_by_kind
from ecospa_fx.passes.choose import check_couples
from ecospa_fx.passes.plan import plan
from ecospa_fx.plan import PlanSettings
from ecospa_fx.removal import Removal
from ecospa_fx.target import WHOLE, Aim, Target


def reach(graph: CouplingGraph, partition: Partition, removal: Removal, target: Target,
          settings: PlanSettings, outside: int) -> dict[str, Aim]:  # fmt: skip
    """Where a schedule begins and where it ends.

    Args:
        graph: the couples.
        partition: which components follow from others.
        removal: what is gone already; ratios count from the dense model all the same.
        target: what is asked for.
        settings: how it is shared out.
        outside: number of parameters of the model that the graph does not read.

    Returns:
        One aim for the whole model, by the name :data:`WHOLE`; or one for each kind that has a ratio of its
        own, which counts the parameters that couples of this kind hold.

    Raises:
        PlanError: the target is out of reach; the message says the most that is in reach.
        CoupleError: no couple is in play.
    """
    alike = np.zeros(len(graph.couple_of))
    uniform = replace(settings, allocation="uniform")
    if isinstance(target.ratio, Mapping):
        check_kinds(graph, target.ratio, settings)
        aims = {k: _kind(graph, partition, removal, k, r) for k, r in target.ratio.items()}
        ratios = (
            target.ratio if not removal.removed else shares({k: (a.begin, a.final) for k, a in aims.items()})
        )
        plan_by_kind(graph, partition, removal, alike, ratios=ratios, settings=uniform, outside=outside)
        return aims
    check_couples(graph, settings.kinds)
    aim = _whole(graph, partition, removal, target, settings, outside)
    if target.ratio is not None and not removal.removed:
        plan(graph, partition, removal, alike, ratio=target.ratio, settings=uniform, outside=outside)
    else:
        size = min(aim.final, aim.begin)
        plan(graph, partition, removal, alike, target_params=size, settings=uniform, outside=outside)
    return {WHOLE: aim}


def shares(sizes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Ratios by kind, from how many parameters each kind holds and how many it is to hold.

    >>> shares({"ffn": (100, 75), "qk": (10, 12)})
    {'ffn': 0.25, 'qk': 0.0}
    """
    return {kind: max(0.0, (now - then) / max(now, 1)) for kind, (now, then) in sizes.items()}


def _kind(graph: CouplingGraph, partition: Partition, removal: Removal, kind: str, ratio: float) -> Aim:
    dense = held_by(graph, partition, Removal(), kind)
    return Aim(held_by(graph, partition, removal, kind), dense - _gone(ratio, dense))


def _whole(graph: CouplingGraph, partition: Partition, removal: Removal, target: Target,
           settings: PlanSettings, outside: int) -> Aim:  # fmt: skip
    present = Census(graph, partition, removal, settings.kinds)
    begin = present.params(present.dead) + outside
    if target.params is not None:
        return Aim(begin, target.params)
    dense = Census(graph, partition, Removal(), settings.kinds)
    size = dense.params(dense.dead) + outside
    return Aim(begin, size - _gone(float(np.asarray(target.ratio)), dense.coupled(dense.dead)))


def _gone(ratio: float, held: int) -> int:
    return ceil(ratio * held - 1e-6)
