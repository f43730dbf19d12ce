"""Boxes: joint label arrays, whose rows must keep equal counts because a tensor is a box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecospa_fx.labels import Ids
from ecospa_fx.program import Analysis


@dataclass(frozen=True, eq=False)
class Rows:
    """Components of a joint label array, one row per outer index, shape ``[rows, width]``."""

    ids: Ids
    components: Ids


def rows_of(analysis: Analysis) -> Iterator[Rows]:
    """Every joint array once, however many values carry it."""
    seen: set[Any] = set()
    for ids in _boxes(analysis):
        components = analysis.partition.component[ids]
        key = (ids.shape, components.tobytes())
        if key not in seen:
            seen.add(key)
            yield Rows(ids, components)


def _boxes(analysis: Analysis) -> Iterator[Ids]:
    """Label arrays whose rows must keep equal counts, ``[rows, width]``."""
    stacks, seen = analysis.space.stacks, set()
    for value in analysis.leaves():
        for array in value.arrays:
            if id(array.ids) in seen:
                continue
            seen.add(id(array.ids))
            every = stacks.every_row(array.ids)
            if len(array.axes) > 1 or every is not None:
                ids = np.moveaxis(array.ids if every is None else every, value.inner(array) - value.rank, -1)
                yield ids.reshape(-1, ids.shape[-1])
    for part in stacks.parts:
        every = stacks.every_row(part)
        if every is not None and part.size:
            yield every
