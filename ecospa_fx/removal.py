"""What has been removed from a model so far: for every parameter, indices along its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ecospa_fx.errors import PlanError
from ecospa_fx.labels import Ids


@dataclass(frozen=True, eq=False)
class Removal:
    """Removed indices, in terms of the dense parameters.

    Attributes:
        shapes: dense shape of every parameter that lost something.
        removed: parameter name → axis → sorted dense indices that are gone.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed: Mapping[str, Mapping[int, Ids]] = field(default_factory=dict)

    def kept(self, name: str, axis: int, size: int) -> Ids:
        """Which indices of an axis are still there: bool, shape ``[size]``."""
        alive = np.ones(size, bool)
        gone = self.removed.get(name, {}).get(axis)
        if gone is not None:
            alive[gone] = False
        return alive

    def mask(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Which entries of a dense parameter are still there: bool, of ``shape``."""
        mask = torch.ones(shape, dtype=torch.bool)
        for axis in self.removed.get(name, {}):
            line = torch.from_numpy(self.kept(name, axis, shape[axis]))
            mask = mask & line.view([-1 if a == axis else 1 for a in range(len(shape))])
        return mask

    def shape(self, name: str, dense: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a parameter after the removal."""
        gone = self.removed.get(name, {})
        return tuple(n - len(gone.get(a, ())) for a, n in enumerate(dense))

    def renamed(self, names: Mapping[str, str]) -> Removal:
        """The part of it that concerns some parameters.

        Args:
            names: new name of each of them → its name here.
        """
        found = {new: old for new, old in names.items() if old in self.removed}
        return Removal(
            {new: self.shapes[old] for new, old in found.items()},
            {new: self.removed[old] for new, old in found.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        removed = {n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.removed.items()}
        return {"shapes": {n: list(s) for n, s in self.shapes.items()}, "removed": removed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Removal:
        """The inverse of :meth:`to_dict`; every index is checked.

        Raises:
            PlanError: an axis or an index does not exist, or an axis would be left empty.
        """
        shapes = {n: tuple(int(x) for x in s) for n, s in data["shapes"].items()}
        removed: dict[str, dict[int, Ids]] = {}
        for name, axes in data["removed"].items():
            if name not in shapes:
                raise PlanError(f"the plan removes entries of {name!r} without giving its shape")
            removed[name] = {int(a): _checked(name, shapes[name], int(a), i) for a, i in axes.items()}
        return cls(shapes, removed)


def sorted_within(indices: Ids, size: int) -> bool:
    """Whether indices ascend, each once, within ``[0, size)``."""
    return bool((np.diff(indices) > 0).all() and (indices >= 0).all() and (indices < size).all())


def _checked(name: str, shape: tuple[int, ...], axis: int, indices: Any) -> Ids:
    if not 0 <= axis < len(shape):
        raise PlanError(f"the plan names axis {axis} of {name!r}, which has shape {list(shape)}")
    whole = isinstance(indices, list) and all(type(i) is int for i in indices)
    found = np.sort(np.asarray(indices if whole else [-1], dtype=np.int64))
    if not sorted_within(found, shape[axis]):
        raise PlanError(
            f"the plan needs whole numbers, each once, within axis {axis} of {name!r} (size {shape[axis]})"
        )
    if len(found) >= shape[axis]:
        raise PlanError(f"the plan would leave axis {axis} of {name!r} empty")
    return found
