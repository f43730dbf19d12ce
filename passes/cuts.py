"""Cuts: from what was and what will be removed to the cut of every parameter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import PlanError
from ecospa_fx.masked import narrow
from ecospa_fx.removal import Removal, sorted_within

Shapes = Mapping[str, tuple[int, ...]]


def cuts(before: Removal, after: Removal, shapes: Shapes) -> dict[str, ParameterCut]:
    """What each parameter loses between two removals.

    Args:
        before: what is gone already.
        after: what will be gone, all of that included.
        shapes: dense shape of every parameter.

    Raises:
        PlanError: ``after`` is for other parameters, or keeps what is gone; all culprits are listed.
    """
    problems = [*_strangers(after, shapes), *_revived(before, after)]
    if problems:
        raise PlanError("the plan does not fit the model: " + "; ".join(problems[:8]))
    found = {}
    for name in after.removed:
        dense = shapes[name]
        old, new = before.shape(name, dense), after.shape(name, dense)
        if old != new:
            found[name] = _cut(name, before, after, dense, new)
    return found


def _cut(
    name: str, before: Removal, after: Removal, dense: tuple[int, ...], new: tuple[int, ...]
) -> ParameterCut:
    if name in after.stacked:
        return ParameterCut(narrow(after.mask(name, dense), name, before), new, after.stacked[name].rows)
    left = ((after.kept(name, a, size), before.kept(name, a, size)) for a, size in enumerate(dense))
    return ParameterCut.along([torch.from_numpy(stays[was]) for stays, was in left])


def _strangers(removal: Removal, shapes: Shapes) -> list[str]:
    return [
        f"{name} is of shape {removal.shapes.get(name)} in the plan and {shapes.get(name, 'absent')} "
        "in the model"
        for name in removal.removed
        if removal.shapes.get(name) != shapes.get(name)
    ] + [
        f"axis {axis} of {name} has no such indices, or would be left empty"
        for name, axes in removal.removed.items()
        for axis in axes
        if name in shapes and not _fits(removal, name, axis, shapes[name])
    ]


def _fits(removal: Removal, name: str, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether indices are sorted, exist, and leave something."""
    if not 0 <= axis < len(shape):
        return False
    gone, length = removal.removed[name][axis], removal.length(name, axis, shape)
    return sorted_within(gone, length) and len(gone) < length


def _revived(before: Removal, after: Removal) -> list[str]:
    none = np.zeros(0, np.int64)
    return [
        f"it chooses the indices of {name} in another way than what is gone already"
        for name in before.removed
        if any(before.stack(name, axis) != after.stack(name, axis) for axis in before.removed[name])
    ] + [
        f"it keeps entries of {name} (axis {axis}) that are gone already; plans are cumulative"
        for name, axes in before.removed.items()
        for axis, gone in axes.items()
        if not np.isin(gone, after.removed.get(name, {}).get(axis, none)).all()
    ]
