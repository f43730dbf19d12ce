"""One parameter's cut: which entries survive, and how every tensor of its shape follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch

from ecospa_fx.errors import RewriteError


class _Step(NamedTuple):
    """One axis made shorter: its former size, and the indices that stay and go (int64, on the CPU)."""

    axis: int
    size: int
    kept: torch.Tensor
    removed: torch.Tensor


@dataclass(frozen=True, eq=False)
class ParameterCut:
    """The surviving entries of one parameter, which always form a dense box.

    A tensor of the parameter's shape becomes ``tensor[kept].reshape(new_shape)``. Mostly that is a choice of
    indices per axis; indices may also differ from matrix to matrix, such as those of experts in one tensor.
    Tensors are narrowed axis by axis, which takes far less time and memory than indexing by the mask.

    Attributes:
        kept: bool, the parameter's shape before the cut, True where an entry survives.
        new_shape: the parameter's shape after the cut.
        rows: the axis along which such matrices stand.

    Raises:
        RewriteError: ``kept`` is no bool tensor with values, or its True entries do not form a box of
            ``new_shape``.

    Example:
        >>> kept = torch.tensor([[True, False, True], [False, False, False]])
        >>> cut = ParameterCut(kept, (1, 2))
        >>> cut.apply(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        tensor([[1, 3]])
    """

    kept: torch.Tensor
    new_shape: tuple[int, ...]
    rows: int = 0

    def __post_init__(self) -> None:
        if self.kept.dtype is not torch.bool or self.kept.is_meta:
            raise RewriteError(
                f"kept must be a bool tensor with values, not {self.kept.dtype} on {self.kept.device}"
            )
        sizes = tuple(len(index) for index in self._indices)
        if not (sizes == self.new_shape if self.is_product else self._may_differ(sizes)):
            raise RewriteError(
                f"{self._count} entries kept of {self.old_shape} do not form a box of shape {self.new_shape}"
            )
        _ = self._slices  # where they differ, each has to form a box as well
        object.__setattr__(self, "kept", self._compact())

    def _may_differ(self, sizes: tuple[int, ...]) -> bool:
        """Whether there are matrices to cut one by one, as many of them as there should be."""
        return 0 <= self.rows < len(sizes) > 1 and sizes[self.rows] == self.new_shape[self.rows]

    def _compact(self) -> torch.Tensor:
        """``kept`` without memory for what repeats: mostly a single axis becomes shorter."""
        axes = [axis for axis, size in enumerate(self.old_shape) if size != self.new_shape[axis]]
        if not self.is_product or len(axes) != 1:
            return self.kept
        return _box([self.axis_kept(axis) for axis in range(self.kept.dim())])

    @classmethod
    def along(cls, lines: Sequence[torch.Tensor]) -> ParameterCut:
        """The cut that keeps the same indices of each axis everywhere; it reads no mask entry by entry.

        Args:
            lines: which indices of each axis stay, bool, shape ``[size]``, on the CPU.

        Example:
            >>> ParameterCut.along([torch.tensor([True, False]), torch.tensor([True, False, True])]).new_shape
            (1, 2)
        """
        cut = object.__new__(cls)
        indices = [line.nonzero()[:, 0] for line in lines]
        sizes = tuple(len(index) for index in indices)
        cut.__dict__.update(kept=_box(lines), new_shape=sizes, _indices=indices, _count=prod(sizes))
        return cut

    @property
    def old_shape(self) -> tuple[int, ...]:
        """The parameter's shape before the cut."""
        return tuple(self.kept.shape)

    @property
    def changes(self) -> bool:
        """Whether anything goes."""
        return self.old_shape != self.new_shape

    def axis_kept(self, axis: int) -> torch.Tensor:
        """Whether anything survives at each index of ``axis``: bool, shape ``[old_shape[axis]]``."""
        if "_indices" in self.__dict__ and self.is_product and self._count:
            line = torch.zeros(self.old_shape[axis], dtype=torch.bool)
            return line.index_fill_(0, self._indices[axis], True).to(self.kept.device)
        others = [other for other in range(self.kept.dim()) if other != axis % self.kept.dim()]
        return self.kept.any(dim=others) if others else self.kept

    def collapse(self, axis: int) -> ParameterCut:
        """The cut of a tensor that has size 1 along ``axis``, such as a mean over it with ``keepdim``.

        Raises:
            RewriteError: indices along the other axes depend on the index along ``axis``.
        """
        shape = list(self.new_shape)
        shape[axis] = 1
        return ParameterCut(self.kept.any(dim=axis, keepdim=True), tuple(shape), self.rows)

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Cut ``tensor``.

        Args:
            tensor: shape ``old_shape``, of any dtype, on any device; sparse COO gradients as well.

        Returns:
            A new tensor of shape ``new_shape``, dense in the memory order of ``tensor`` (contiguous if that
            was contiguous, channels last if that was).

        Raises:
            RewriteError: ``tensor`` has another shape.
        """
        self._check(tensor, self.old_shape)
        small = self._narrow(tensor, None)
        return _in_order_of(tensor, small.clone() if small is tensor else small)

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Cut ``tensor``, and keep what goes: together the parts hold every entry once.

        Args:
            tensor: strided, shape ``old_shape``.

        Returns:
            What `apply` returns, and the removed entries as `join` wants them.

        Raises:
            RewriteError: ``tensor`` has another shape.
        """
        self._check(tensor, self.old_shape)
        removed: list[torch.Tensor] = []
        small = self._narrow(tensor, removed)
        return _in_order_of(tensor, small.clone() if small is tensor else small), removed

    def join(self, small: torch.Tensor, removed: Sequence[torch.Tensor]) -> torch.Tensor:
        """Undo `split`, bit for bit: a tensor of shape ``old_shape`` from its two results.

        Raises:
            RewriteError: ``small`` is not of shape ``new_shape``.
        """
        self._check(small, self.new_shape)
        return _in_order_of(small, self._widen(small, list(removed)))

    def scatter(self, small: torch.Tensor) -> torch.Tensor:
        """Put a tensor of shape ``new_shape`` back into shape ``old_shape``, with zeros at removed entries.

        Raises:
            RewriteError: ``small`` has another shape.
        """
        self._check(small, self.new_shape)
        return _in_order_of(small, self._widen(small, None))

    @cached_property
    def _count(self) -> int:
        return int(self.kept.count_nonzero())

    @cached_property
    def _indices(self) -> list[torch.Tensor]:
        """The kept indices of each axis; where nothing survives, as many as ``new_shape`` says."""
        if self._count:
            return [self.axis_kept(axis).nonzero()[:, 0].cpu() for axis in range(self.kept.dim())]
        return [torch.arange(min(sizes)) for sizes in zip(self.old_shape, self.new_shape, strict=False)]

    @cached_property
    def is_product(self) -> bool:
        """Whether the indices of each axis are the same everywhere."""
        return self._count == prod(len(index) for index in self._indices)

    @cached_property
    def _steps(self) -> list[_Step]:
        """The axes that are made shorter as a whole; before `_slices`, whole matrices."""
        axes = range(self.kept.dim()) if self.is_product else (self.rows,)
        return [
            _Step(axis, size, self._indices[axis], _complement(self._indices[axis], size))
            for axis, size in enumerate(self.old_shape)
            if axis in axes and len(self._indices[axis]) < size
        ]

    @cached_property
    def _slices(self) -> list[ParameterCut]:
        """One cut for each surviving matrix, where they differ; else none."""
        if self.is_product:
            return []
        shape = (*self.new_shape[: self.rows], *self.new_shape[self.rows + 1 :])
        return [ParameterCut(self.kept.select(self.rows, int(i)), shape) for i in self._indices[self.rows]]

    def _check(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise RewriteError(
                f"a cut from {self.old_shape} to {self.new_shape} got {tuple(tensor.shape)}, not {shape}"
            )

    def _narrow(self, tensor: torch.Tensor, removed: list[torch.Tensor] | None) -> torch.Tensor:
        """Cut ``tensor``, and append what goes to ``removed``."""
        for axis, _, kept, gone in self._steps:
            if removed is not None:
                removed.append(tensor.index_select(axis, gone.to(tensor.device)))
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        if self._slices:
            parts = zip(self._slices, tensor.unbind(self.rows), strict=True)
            tensor = torch.stack([cut._narrow(part, removed) for cut, part in parts], self.rows)
        return tensor

    def _widen(self, small: torch.Tensor, removed: list[torch.Tensor] | None) -> torch.Tensor:
        """Undo `_narrow`, and take what came from the end of ``removed``; None puts zeros there."""
        if self._slices:
            pairs = [*zip(self._slices, small.unbind(self.rows), strict=True)]
            parts = [cut._widen(part, removed) for cut, part in reversed(pairs)]
            small = torch.stack(parts[::-1], self.rows)
        for axis, size, kept, gone in reversed(self._steps):
            wide = small.new_zeros(*small.shape[:axis], size, *small.shape[axis + 1 :])
            wide.index_copy_(axis, kept.to(small.device), small)
            if removed is not None:
                wide.index_copy_(axis, gone.to(small.device), removed.pop())
            small = wide
        return small


def _box(lines: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mask of which each axis is one of ``lines``; what repeats takes no memory."""
    mask = torch.ones((), dtype=torch.bool)
    for axis, line in enumerate(lines):
        if not bool(line.all()):
            mask = mask & line.view([-1 if other == axis else 1 for other in range(len(lines))])
    return mask.expand([len(line) for line in lines])


def _complement(index: torch.Tensor, size: int) -> torch.Tensor:
    rest = torch.ones(size, dtype=torch.bool)
    rest[index] = False
    return rest.nonzero()[:, 0]


def _in_order_of(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, dense, with its axes in memory in the order in which they are in ``model``."""
    if model.layout is not torch.strided:
        return tensor
    if model.is_contiguous():
        return tensor.contiguous()
    strides = model.stride()
    order = sorted(range(model.dim()), key=lambda axis: -strides[axis])
    back = sorted(range(model.dim()), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
