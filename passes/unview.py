"""Unview: from a new value of a view to the new value of what it is a view of."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ecospa_fx.sizes import static

aten: Any = torch.ops.aten
PIECES = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.chunk.default,
    aten.unbind.int,
    aten.tensor_split.sections,
)
_DETACHED = (aten.detach.default, aten.detach_.default)


class UnwritableError(Exception):
    """Nobody knows how to write through a view, or what a write changes."""


def unview(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    """Write the node of ``base`` after what ``view`` shows of it has become ``new``.

    Args:
        view: the view, as it was captured; of several pieces that an operator returns, the piece.
        base: what it is a view of.
        new: the view's new value; the new node stands behind it.

    Returns:
        The new value of the base.

    Raises:
        UnwritableError: the view has no way back.
    """
    if view.target is operator.getitem:
        return _piece(view, base, new)
    if view.target in _SCATTERS:
        return made_like(base, _SCATTERS[view.target], base, new, *view.args[1:], **view.kwargs)
    if view.target in _WAYS:
        return _WAYS[view.target](view, base, new)
    raise UnwritableError(f"{view.target} has no way back")


def tensor(node: Any) -> torch.Tensor | None:
    """What a node computes, if that is one tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def made_like(like: fx.Node, target: Any, /, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node whose value is such as that of ``like``."""
    node = like.graph.call_function(target, args, kwargs)
    node.meta = dict(like.meta)
    return node


def _itself(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    """The view is the memory itself; views that change its type do not share it."""
    mine, other = tensor(view), tensor(base)
    if mine is None or other is None or mine.shape != other.shape or mine.dtype != other.dtype:
        raise UnwritableError(f"{view.target} is written through")
    return new


def _swapped(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    return made_like(base, view.target, new, *view.args[1:])


def _permuted(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    order: Any = view.args[1]
    rank = len(order)
    return made_like(base, view.target, new, sorted(range(rank), key=lambda i: order[i] % rank))


def _squeezed(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    return made_like(base, aten.squeeze.dim, new, view.args[1])


def _unsqueezed(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    found = tensor(base)
    assert found is not None
    same = static(found.shape[view.args[1]]) != 1  # type: ignore[index]
    return new if same else made_like(base, aten.unsqueeze.default, new, view.args[1])


def _detached(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    """What others read of the memory has the new values, and learns nothing."""
    return made_like(base, aten.detach.default, new)


def _reshaped(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    found = tensor(base)
    assert found is not None
    sizes = [_size(base, axis, size) for axis, size in enumerate(found.shape)]
    return made_like(base, aten.reshape.default, new, sizes)


def _size(base: fx.Node, axis: int, size: Any) -> Any:
    known = static(size)
    if known is not None:
        return known
    node = base.graph.call_function(aten.sym_size.int, (base, axis))
    node.meta["val"] = size
    return node


def _piece(view: fx.Node, base: fx.Node, new: fx.Node) -> fx.Node:
    """A piece of several: the range of an axis, or one index of it."""
    made, place = view.args
    assert isinstance(made, fx.Node)
    if made.target is aten.unbind.int:
        axis = made.args[1] if len(made.args) > 1 else 0
        return made_like(base, aten.select_scatter.default, base, new, axis, place)
    axis = made.args[2] if len(made.args) > 2 else made.kwargs.get("dim", 0)
    lengths = [static(piece.shape[axis]) for piece in made.meta["val"][: place + 1]]  # type: ignore[operator]
    if None in lengths:
        raise UnwritableError("a piece begins where data say")
    end = sum(n for n in lengths if n is not None)
    return made_like(base, aten.slice_scatter.default, base, new, axis, end - (lengths[-1] or 0), end)


_SCATTERS = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
MAYBE = (
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten.dropout.default,
)
"""Operators that return a view or a copy: whether the memory is the same tells."""
_RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unflatten.int)
_WAYS: dict[Any, Callable[[fx.Node, fx.Node, fx.Node], fx.Node]] = {
    aten.transpose.int: _swapped,
    aten.t.default: _swapped,
    aten.permute.default: _permuted,
    aten.unsqueeze.default: _squeezed,
    aten.squeeze.dim: _unsqueezed,
    **dict.fromkeys(_DETACHED, _detached),
    **dict.fromkeys(_RESHAPES, _reshaped),
    **dict.fromkeys((aten.alias.default, *(m for m in MAYBE if m not in _RESHAPES)), _itself),
}
