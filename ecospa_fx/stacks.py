"""Stacks: matrices in one tensor (experts, heads), each of which chooses its own indices along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ecospa_fx.arrays import distinct

Ids = np.ndarray


class Stack(NamedTuple):
    """Matrices of one tensor, each of which chooses its own indices.

    What is told place by place counts through the matrices, ``row * size + index``. The matrices stand along
    the earlier axis, so that ``dense[mask].view(shape)`` is what is left of a tensor.

    Attributes:
        rows: the axis along which the matrices stand.
        axis: the axis along which each of them chooses, behind ``rows``.
    """

    rows: int
    axis: int

    def places(self, shape: Sequence[int]) -> int:
        """Number of places in a tensor of ``shape``: those of all matrices."""
        return shape[self.rows] * shape[self.axis]

    def spread(self, places: Ids, shape: Sequence[int]) -> Ids:
        """One value for each place, along the two axes of a tensor of ``shape``; size 1 along the others."""
        return places.reshape([n if a in self else 1 for a, n in enumerate(shape)])


@dataclass(eq=False)
class Stacks:
    """Blocks of labels ``[rows, width]``: a row for each matrix of a stack.

    Where the input picks the matrix (a token its expert), no value of the graph shows which row it meets:
    row 0 stands for all. Such a block is *routed*. A fact about labels of row 0 holds in each row for itself
    if it is between routed blocks of equally many rows; else the rows agree, index by index.

    Attributes:
        starts: first label of each block.
        rows: its number of matrices.
        widths: its number of labels for each.
        routed: numbers of the blocks that are routed.
        parts: labels of row 0 of which every row has to keep as many: what lies before a range.
    """

    starts: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    routed: set[int] = field(default_factory=set)
    parts: list[Ids] = field(default_factory=list)

    def add(self, start: int, rows: int, width: int) -> None:
        """Note a block whose first label is ``start``."""
        self.starts.append(start)
        self.rows.append(rows)
        self.widths.append(width)

    def route(self, ids: Ids) -> None:
        """Row 0 of the blocks of these labels stands for all of their rows from now on."""
        self.routed |= {int(b) for b in distinct(self._block(ids.ravel())) if b >= 0}

    def holds(self, ids: Ids) -> bool:
        """Whether labels are those of blocks."""
        return bool((self._block(ids.ravel()) >= 0).all())

    def _block(self, labels: Ids) -> Ids:
        """The block of each label, -1 for none."""
        if not self.starts:
            return np.full(len(labels), -1)
        starts = np.array(self.starts)
        ends = starts + np.array(self.rows) * np.array(self.widths)
        found = np.searchsorted(starts, labels, "right") - 1
        return np.where((found >= 0) & (labels < ends[found]), found, -1)

    def represented(self, labels: Ids) -> tuple[Ids, Ids]:
        """Where labels stand for a column, how many rows it has, and the step between them; else 1 and 0."""
        if not self.routed:
            return np.ones(len(labels), np.int64), np.zeros(len(labels), np.int64)
        block = self._block(labels)
        chosen = np.isin(block, list(self.routed))
        widths, rows = np.array(self.widths)[block], np.array(self.rows)[block]
        first = chosen & (labels - np.array(self.starts)[block] < widths)
        return np.where(first, rows, 1), np.where(first, widths, 0)

    def every_row(self, ids: Ids) -> Ids | None:
        """The labels that ``ids`` stand for, ``[rows, *ids.shape]``; None if they do not, or unevenly."""
        if not self.routed:
            return None
        rows, step = self.represented(ids.ravel())
        if not len(rows) or rows.min() != rows.max() or rows[0] == 1:
            return None
        every = ids.ravel() + np.arange(rows[0])[:, None] * step
        return np.asarray(every.reshape(-1, *ids.shape))

    def standing(self, dead: Ids) -> Ids:
        """``dead``, where rows 0 that are gone as a whole stand for what the first row that is left keeps."""
        dead = dead.copy()
        for block in self.routed:
            start, rows, width = self.starts[block], self.rows[block], self.widths[block]
            every = dead[start : start + rows * width].reshape(rows, width)
            left = np.flatnonzero(~every.all(1))
            if len(left):
                every[0] = every[left[0]]
        return dead

    def columns(self, labels: Ids) -> tuple[Ids, Ids]:
        """Pairs that unite each label that stands for a column with the rest of it."""
        rows, step = self.represented(labels)
        return np.repeat(labels, rows - 1), _spread(labels, rows, step)

    def mirrored(self, left: Ids, right: Ids) -> tuple[Ids, Ids]:
        """Unions in every row, from those of labels that stand for columns.

        Args:
            left: labels, and
            right: those that they are united with.
        """
        if not self.routed:
            return left, right
        rows_left, step_left = self.represented(left)
        rows_right, step_right = self.represented(right)
        alike = (rows_left == rows_right) & (rows_left > 1)
        both = left[alike], right[alike]
        more = [
            _spread(labels, rows_left[alike], step[alike])
            for labels, step in zip(both, (step_left, step_right), strict=True)
        ]
        uneven = np.concatenate([left[~alike & (rows_left > 1)], right[~alike & (rows_right > 1)]])
        one, rest = self.columns(distinct(uneven))
        return np.concatenate([left, more[0], one]), np.concatenate([right, more[1], rest])


def _spread(labels: Ids, rows: Ids, step: Ids) -> Ids:
    """Every label's counterparts in rows 1, 2, ..."""
    counts = rows - 1
    row = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return np.asarray(np.repeat(labels, counts) + row * np.repeat(step, counts))
