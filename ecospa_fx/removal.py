"""What has been removed from a model so far: for every parameter, indices along its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ecospa_fx.arrays import along
from ecospa_fx.errors import PlanError
from ecospa_fx.labels import Ids
from ecospa_fx.stacks import Stack


@dataclass(frozen=True, eq=False)
class Removal:
    """Removed indices, in terms of the dense parameters.

    Attributes:
        shapes: dense shape of every parameter that lost something.
        removed: parameter name → axis → sorted dense indices that are gone. Along an axis of ``stacked``
            they count through the rows, ``row * size + index``.
        stacked: parameter name → the axis along which matrices stand (experts or heads) and the one along
            which each of them has its own choice. All that are left keep equally many.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed: Mapping[str, Mapping[int, Ids]] = field(default_factory=dict)
    stacked: Mapping[str, Stack] = field(default_factory=dict)

    def length(self, name: str, axis: int, dense: tuple[int, ...]) -> int:
        """Number of places along an axis; along the axis of a stack those of all rows."""
        stack = self.stack(name, axis)
        return stack.places(dense) if stack else dense[axis]

    def stack(self, name: str, axis: int) -> Stack | None:
        """The matrices that choose for themselves along an axis, if they do."""
        found = self.stacked.get(name)
        return found if found is not None and found.axis == axis else None

    def kept(self, name: str, axis: int, length: int) -> Ids:
        """Which places along an axis are still there: bool, shape ``[length]`` (see :meth:`length`)."""
        alive = np.ones(length, bool)
        gone = self.removed.get(name, {}).get(axis)
        if gone is not None:
            alive[gone] = False
        return alive

    def mask(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Which entries of a dense parameter are still there: bool, of ``shape``."""
        mask = torch.ones(shape, dtype=torch.bool)
        for axis in self.removed.get(name, {}):
            line, stack = self.kept(name, axis, self.length(name, axis, shape)), self.stack(name, axis)
            line = stack.spread(line, shape) if stack else along(line, len(shape), axis)
            mask = mask & torch.from_numpy(line)
        return mask

    def shape(self, name: str, dense: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a parameter after the removal."""
        gone = self.removed.get(name, {})
        shape = [n - len(gone.get(a, ())) for a, n in enumerate(dense)]
        if (stack := self.stacked.get(name)) and stack.axis in gone:
            kept = self.kept(name, stack.axis, stack.places(dense)).reshape(dense[stack.rows], -1)
            shape[stack.axis] = int(kept.sum(1).max())
        return tuple(shape)

    def renamed(self, names: Mapping[str, str]) -> Removal:
        """The part of it that concerns some parameters.

        Args:
            names: new name of each of them → its name here.
        """
        found = {new: old for new, old in names.items() if old in self.removed}
        return Removal(
            {new: self.shapes[old] for new, old in found.items()},
            {new: self.removed[old] for new, old in found.items()},
            {new: self.stacked[old] for new, old in found.items() if old in self.stacked},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a stack is ``[rows, axis]``, or ``axis`` where its matrices stand along axis 0."""
        removed = {n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.removed.items()}
        shapes = {n: list(s) for n, s in self.shapes.items()}
        axes = {n: list(stack) if stack.rows else stack.axis for n, stack in self.stacked.items()}
        return {"shapes": shapes, "removed": removed, **({"stacked": axes} if axes else {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Removal:
        """The inverse of :meth:`to_dict`; every index is checked.

        Raises:
            PlanError: an axis or an index does not exist, or an axis would be left empty.
        """
        shapes = {n: tuple(int(x) for x in s) for n, s in data["shapes"].items()}
        stacked = _stacked(data.get("stacked", {}), shapes)
        removed: dict[str, dict[int, Ids]] = {}
        for name, axes in data["removed"].items():
            if name not in shapes:
                raise PlanError(f"the plan removes entries of {name!r} without giving its shape")
            removed[name] = {
                int(a): _checked(name, shapes[name], int(a), i, stacked.get(name)) for a, i in axes.items()
            }
        removal = cls(shapes, removed, stacked)
        for name in stacked:
            removal.check_rows(name)
        return removal

    def check_rows(self, name: str) -> None:
        """Refuse a stack whose matrices would not form a box.

        Raises:
            PlanError: those that are left keep different counts, or nothing.
        """
        (rows, axis), dense = self.stacked[name], self.shapes[name]
        counts = self.kept(name, axis, self.length(name, axis, dense)).reshape(dense[rows], -1).sum(1)
        counts = counts[self.kept(name, rows, dense[rows])]
        if counts.min() != counts.max() or not counts[0]:
            raise PlanError(
                f"the plan leaves {counts.min()} to {counts.max()} indices in the matrices of {name!r} along "
                f"axis {axis}; all need equally many"
            )


def sorted_within(indices: Ids, size: int) -> bool:
    """Whether indices ascend, each once, within ``[0, size)``."""
    return bool((np.diff(indices) > 0).all() and (indices >= 0).all() and (indices < size).all())


def _stacked(data: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stack]:
    told = {n: axes if isinstance(axes, list) else [0, axes] for n, axes in data.items()}
    wrong = [n for n, axes in told.items() if not _are_axes(axes, len(shapes.get(n, ())))]
    if wrong:
        raise PlanError(f"the plan names stacks that do not exist: {', '.join(map(repr, wrong[:8]))}")
    return {n: Stack(*axes) for n, axes in told.items()}


def _are_axes(axes: list[Any], rank: int) -> bool:
    """Whether a list names two axes of a tensor, in their order."""
    return len(axes) == 2 and all(type(a) is int for a in axes) and 0 <= axes[0] < axes[1] < rank


def _checked(name: str, shape: tuple[int, ...], axis: int, indices: Any, stack: Stack | None) -> Ids:
    if not 0 <= axis < len(shape):
        raise PlanError(f"the plan names axis {axis} of {name!r}, which has shape {list(shape)}")
    length = stack.places(shape) if stack and stack.axis == axis else shape[axis]
    whole = isinstance(indices, list) and all(type(i) is int for i in indices)
    found = np.sort(np.asarray(indices if whole else [-1], dtype=np.int64))
    if not sorted_within(found, length):
        raise PlanError(
            f"the plan needs whole numbers, each once, within axis {axis} of {name!r} (size {length})"
        )
    if len(found) >= length:
        raise PlanError(f"the plan would leave axis {axis} of {name!r} empty")
    return found
