"""What the second half of a rule works on: one node of the graph, while it is written anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import Ids, Value
from ecospa_fx.layout import Layout
from ecospa_fx.rules.call import Call, item


class Site:
    """One node under rewriting: its call, the layouts around it and the new graph.

    Attributes:
        call: the dense call, with label arrays.
        args: named arguments of the new node.
        result: the new node (or a tuple of nodes for several outputs), once decided.
    """

    def __init__(self, call: Call, target: Any, args: Mapping[str, Any], graph: fx.Graph,
                 layout: Callable[[Value], Layout], constant: Callable[[Ids], fx.Node]) -> None:  # fmt: skip
        self.call = call
        self.target = target
        self.args = dict(args)
        self.result: Any = None
        self._graph = graph
        self._layout = layout
        self._constant = constant

    def layout(self, name: str) -> Layout:
        """Layout of the tensor argument called ``name``."""
        return self._layout(self.operand(name))

    def layout_out(self, output: int = 0) -> Layout:
        """Layout of an output."""
        return self._layout(self.call.outputs[output])

    def layout_of(self, value: Value) -> Layout:
        """Layout of any value, such as the common space of a join."""
        return self._layout(value)

    def operand(self, name: str) -> Value:
        """The dense value of an argument; ``tensors[2]`` names an item of a list."""
        value: Value = item(self.call.args, name)
        return value

    def node(self, name: str) -> fx.Node:
        """The new node of an argument."""
        node: fx.Node = item(self.args, name)
        return node

    def set(self, name: str, value: Any) -> None:
        """Change an argument of the new node."""
        base, _, index = name.partition("[")
        if index:
            items = list(self.args[base])
            items[int(index[:-1])] = value
            self.args[base] = items
        else:
            self.args[base] = value

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the new graph."""
        return self._graph.call_function(target, args, kwargs)

    def constant(self, array: Ids) -> fx.Node:
        """An index tensor that lives, and moves, with the model."""
        return self._constant(array)

    def scaled(self, size: Any, new: int, old: int) -> Any:
        """A size argument after its axis went from ``old`` to ``new``; symbolic sizes keep their factor."""
        if isinstance(size, int):
            return new
        return self.emit(_scale, size, new, old)

    def take(self, node: fx.Node, axis: int, at: Ids, free: Free | None = None) -> fx.Node:
        """Physical entries ``at`` of ``node`` along ``axis``.

        Args:
            node: the tensor.
            axis: its axis.
            at: positions, of the node's rank; where they depend on other axes, the result does too.
            free: axes of ``at`` whose sizes are free.

        Raises:
            RewriteError: nothing repeats along an axis of a free size.
        """
        flat = at.ravel()
        if at.size != at.shape[axis]:
            index = self.constant(at) if free is None else self._stretched(at, axis, free)
            return self.emit(_along, node, index, axis)
        step = int(flat[1] - flat[0]) if len(flat) > 1 else 1
        if step > 0 and len(flat) and (np.diff(flat) == step).all():
            end = int(flat[-1]) + 1
            return self.emit(torch.ops.aten.slice.Tensor, node, axis, int(flat[0]), end, step)
        return self.emit(torch.index_select, node, axis, self.constant(flat))

    def _stretched(self, at: Ids, axis: int, free: Free) -> fx.Node:
        """``at``, as long as the call's tensors are where batch and heads share an axis."""
        pieces = {a: free.piece(at, a) for a in free.sizes if a != axis and at.shape[a] > 1}
        for a, (places, _) in pieces.items():
            at = at.take(places, a)
        index = self.constant(at)
        for a, (_, each) in pieces.items():
            size = self.emit(torch.ops.aten.sym_size.int, *free.sizes[a])
            index = self.emit(_stretch, index, a, size, each)
        return index


@dataclass(frozen=True, eq=False)
class Free:
    """Axes of a value whose sizes are free, and that carry labels: heads share them with the batch.

    Attributes:
        value: the value.
        sizes: axis → a tensor that has its size, and on which axis.
    """

    value: Value
    sizes: Mapping[int, tuple[fx.Node, int]]

    def piece(self, at: Ids, axis: int) -> tuple[Ids, bool]:
        """Indices of the shortest piece that repeats, and whether entry by entry (heads, then batch).

        Raises:
            RewriteError: nothing repeats.
        """
        size = self.value.shape[axis]
        labels = self._numbers(axis)
        for length in (n for n in range(1, size) if size % n == 0):
            for each, places in enumerate((np.arange(length), np.arange(0, size, size // length))):
                if all(
                    (_repeat(x.take(places, i), i, size, each) == x).all()
                    for x, i in ((labels, 0), (at, axis))
                ):
                    return places, bool(each)
        raise RewriteError("heads share an axis with a free size, and are neither first nor last in it")

    def _numbers(self, axis: int) -> Ids:
        """A number for each index of an axis: equal ones have the same labels."""
        array = max(self.value.on(axis), key=lambda a: len(a.axes))
        rows = np.moveaxis(array.ids, axis, 0).reshape(array.ids.shape[axis], -1)
        return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _repeat(piece: Ids, axis: int, size: int, each: bool | int) -> Ids:
    count = size // piece.shape[axis]
    return piece.repeat(count, axis) if each else np.concatenate([piece] * count, axis)


def _stretch(at: torch.Tensor, axis: int, size: int, each: bool) -> torch.Tensor:
    """Positions for an axis of ``size``, made of those that repeat along it."""
    count = size // at.shape[axis]
    if each:
        return at.repeat_interleave(count, axis)
    return at.repeat([count if a == axis else 1 for a in range(at.dim())])


def _scale(size: Any, new: int, old: int) -> Any:
    """``size * new // old`` for a symbolic size that is a multiple of ``old``."""
    return size * new // old


def _along(tensor: torch.Tensor, at: torch.Tensor, axis: int) -> torch.Tensor:
    """``torch.take_along_dim``, which fixes free sizes while torch exports."""
    wide = [-1 if a == axis or n == 1 else n for a, n in enumerate(at.shape)]
    full = [tensor.shape[a] if n == 1 and a != axis else -1 for a, n in enumerate(at.shape)]
    return torch.gather(tensor.expand(wide), axis, at.expand(full))


def positions(have: Ids, want: Ids, axis: int) -> Ids:
    """Where the dense indices ``want`` lie in ``have`` along ``axis``.

    Args:
        have: dense indices along the axis, the same for every row (1 elsewhere).
        want: dense indices, of the same rank, possibly different from row to row.
        axis: the axis.

    Raises:
        RewriteError: an index is not there, or ``have`` differs from row to row.
    """
    if have.size != have.shape[axis]:
        if have.shape == want.shape and (have == want).all():
            shape = [have.shape[axis] if a == axis else 1 for a in range(have.ndim)]
            return np.arange(have.shape[axis]).reshape(shape)
        return _row_positions(have, want, axis)
    line = have.ravel()
    order = np.argsort(line, kind="stable")
    found: Ids = order[np.clip(np.searchsorted(line[order], want), 0, len(line) - 1)]
    if (line[found] != want).any():
        raise RewriteError("an entry is needed that has been removed")
    return found


def _row_positions(have: Ids, want: Ids, axis: int) -> Ids:
    """The same where every row has its own entries; rows must agree on the positions, or differ fully."""
    shape = [
        max(h, w) if a != axis else 1 for a, (h, w) in enumerate(zip(have.shape, want.shape, strict=True))
    ]
    have = np.broadcast_to(have, [n if a != axis else have.shape[axis] for a, n in enumerate(shape)])
    want = np.broadcast_to(want, [n if a != axis else want.shape[axis] for a, n in enumerate(shape)])
    equal = np.expand_dims(np.moveaxis(want, axis, -1), -1) == np.expand_dims(np.moveaxis(have, axis, -1), -2)
    if not equal.any(-1).all():
        raise RewriteError("an entry is needed that has been removed")
    found = np.moveaxis(equal.argmax(-1), -1, axis)
    head: Ids = found
    for a in range(found.ndim):
        if a != axis and (head == head.take([0], a)).all():
            head = head.take([0], a)
    return head
