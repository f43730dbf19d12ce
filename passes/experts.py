"""Experts: which of them are chosen from one group, and how many of each group have to stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ecospa_fx.labels import Ids
from ecospa_fx.program import Analysis
from ecospa_fx.routers import Router


def components_of(analysis: Analysis, router: Router) -> Ids:
    """Component of each expert of a router."""
    return np.asarray(analysis.partition.component[analysis.space.experts(router.number, router.experts)])


def parts_of(analysis: Analysis) -> Iterator[Ids]:
    """For each router with groups, the group of each expert, shape ``[components]``; 0 for all else."""
    for router in analysis.program.routers:
        if router.refused is None and router.parts > 1:
            part = np.zeros(analysis.partition.num_components, np.int64)
            part[components_of(analysis, router)] = np.arange(router.experts) * router.parts // router.experts
            yield part


def least_of(analysis: Analysis, units: Ids, segment: Ids) -> dict[int, int]:
    """How many units have to stay in the segments of experts.

    Args:
        analysis: the program with its routers, and its labels.
        units: which components are units: bool, shape ``[components]``.
        segment: segment of each of them, same shape.
    """
    found: dict[int, int] = {}
    for router in analysis.program.routers if units.any() else ():
        experts = components_of(analysis, router)
        for number in np.unique(segment[experts[units[experts]]]):
            found[int(number)] = max(found.get(int(number), 1), router.least)
    return found
