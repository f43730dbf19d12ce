"""Shared rows: along which axis the matrices of a tensor stand, told by the labels of its partners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ecospa_fx.arrays import distinct
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.labels import Tag
from ecospa_fx.program import Analysis
from ecospa_fx.rules.views import FLATTENED
from ecospa_fx.stacks import Stack

_Key = tuple[int, ...]
"""Distinct components along one axis: what makes axes of different parameters the same."""

_FLATTENED: _Key = (-1,)
"""An axis that a view joins with the hidden units inside it: what is on it has lost its labels."""


@dataclass(frozen=True)
class _Place:
    """An axis of hidden units, and the axes along which matrices could stand, by what is on them."""

    name: str
    axis: int
    rows: Mapping[_Key, int]


def shared_rows(
    analysis: Analysis, graph: CouplingGraph, names: Iterable[str], biases: Iterable[str]
) -> dict[str, Stack]:
    """Find the stacks that all parameters which hold some hidden units see in the same way.

    Heads stand along one axis in queries and keys, or in values and outputs, whatever its number: their
    labels are the same there. An input that all matrices share is not such an axis, as it is summed over
    where the hidden units are made.

    Args:
        analysis: the analysis in which all matrices share labels.
        graph: its couples.
        names: parameters that operators read as they are, matrix by matrix or whole.
        biases: those that are only added.

    Returns:
        Parameter name → its axes; at most one pair for each parameter.
    """
    found: dict[str, Stack] = {}
    for places in _groups(analysis, graph, names):
        rows = _agreed(analysis, places)
        own = {p.name: Stack(p.rows[rows], p.axis) for p in places} if rows else {}
        if rows and not own.keys() & found.keys():
            found |= own
    alone = stacked_only(analysis, {n: s.axis for n, s in found.items()})
    found = {n: s for n, s in found.items() if alone[components_on(analysis, n, s.axis)].all()}
    return found | dict(_biases(analysis, biases, found, graph.couple_of >= 0))


def _groups(analysis: Analysis, graph: CouplingGraph, names: Iterable[str]) -> list[list[_Place]]:
    """Axes that hold the same hidden units; those with the most come first."""
    hidden, flattened = _own(graph), _flattened(analysis)
    groups: dict[int, list[_Place]] = {}
    for name in names:
        for axis in range(len(analysis.labels[name])) if extents(analysis, name) > 2 else ():
            components = components_on(analysis, name, axis)
            if hidden[components].any():
                place = _Place(name, axis, dict(_candidates(analysis, name, axis, flattened)))
                groups.setdefault(int(components.min()), []).append(place)
    return sorted(groups.values(), key=lambda g: -analysis.program.parameters[g[0].name][g[0].axis])


def _own(graph: CouplingGraph) -> np.ndarray:
    """Whether each component is a hidden unit."""
    kinds = [c.kind not in ("residual", "head") for c in graph.couples]
    return np.asarray(np.array([*kinds, False])[graph.couple_of])


def _flattened(analysis: Analysis) -> np.ndarray:
    """Whether each component is held only because a view makes one axis of it and of what lies inside it."""
    found = np.array([r.text == FLATTENED for r in analysis.partition.reasons] + [False])
    return np.asarray(found[analysis.partition.pin])


def _candidates(
    analysis: Analysis, name: str, axis: int, flattened: np.ndarray
) -> Iterator[tuple[_Key, int]]:
    """Axes along which matrices may stand; one that is summed over, only together with the hidden one."""
    together = summed(analysis, name, axis)
    routed = any(name in router.stacks for router in analysis.program.routers)  # experts stand along axis 0
    for rows, ids in enumerate(analysis.labels[name][: min(axis, 1) if routed else axis]):
        if ids is not None and together >= summed(analysis, name, rows):
            held = flattened[components_on(analysis, name, rows)].any()
            yield (_FLATTENED if held else _key(analysis, name, rows)), rows


def _agreed(analysis: Analysis, places: list[_Place]) -> _Key | None:
    """What is on the axis of the matrices in all places; heads, if there are any, rather than outputs."""
    keys = [key for key in places[0].rows if all(key in p.rows for p in places)]
    if len({p.name for p in places}) < len(places):
        return None  # the same units on two axes of one parameter

    def rank(key: _Key) -> tuple[bool, bool]:
        together = any(summed(analysis, p.name, p.rows[key]) for p in places)
        heads = key == _FLATTENED or bool((analysis.partition.tags[list(key)] & int(Tag.HEAD)).any())
        return heads, together

    return max(keys, key=rank, default=None)


def _biases(
    analysis: Analysis, names: Iterable[str], found: Mapping[str, Stack], free: np.ndarray
) -> Iterator[tuple[str, Stack]]:
    """Biases of such matrices; one that is added to heads whose labels a view has taken has met none."""
    shapes = analysis.program.parameters
    hidden = {int(c) for n, stack in found.items() for c in components_on(analysis, n, stack.axis)}
    sizes = {tuple(shapes[n][a] for a in stack) for n, stack in found.items()}
    for name in (n for n in names if extents(analysis, n) == 2):
        axes = [a for a, ids in enumerate(analysis.labels[name]) if ids is not None]
        if len(axes) == 2 and tuple(shapes[name][a] for a in axes) in sizes:
            own = {int(c) for c in components_on(analysis, name, axes[1])}
            if own <= hidden or not any(free[components_on(analysis, name, a)].any() for a in axes):
                yield name, Stack(*axes)


def _key(analysis: Analysis, name: str, axis: int) -> _Key:
    return tuple(distinct(components_on(analysis, name, axis)).tolist())


def extents(analysis: Analysis, name: str) -> int:
    """How many axes of a parameter hold more than one index; a bias may keep one of size 1 for the tokens."""
    axes = analysis.labels[name]
    return len(axes) - sum(ids is None for ids in axes[1:-1])


def summed(analysis: Analysis, name: str, axis: int) -> bool:
    """Whether a product sums over an axis: over that of the matrices only together with the hidden one."""
    ids = analysis.labels[name][axis]
    return ids is not None and bool(analysis.partition.label_tags[ids[0]] & Tag.CONTRACTED)


def stacked_only(analysis: Analysis, found: Mapping[str, int]) -> np.ndarray:
    """Whether each component lies on such axes, and in no other box: bool, shape ``[components]``."""
    inside, outside = (np.zeros(analysis.partition.num_components, bool) for _ in range(2))
    for name, labels in analysis.labels.items():
        for axis in range(len(labels)) if extents(analysis, name) > 2 else ():
            (inside if found.get(name) == axis else outside)[components_on(analysis, name, axis)] = True
    return inside & ~outside


def components_on(analysis: Analysis, name: str, axis: int) -> np.ndarray:
    """Component of each index of an axis of a parameter; none for an axis of size 1."""
    ids = analysis.labels[name][axis]
    return np.zeros(0, np.int64) if ids is None else analysis.partition.component[ids]
