"""Extents: the width of a view that only its reader tells.

``attended.reshape(tokens, -1)`` after windows of sizes that depend on data has a width that nothing before
it tells; the linear layer that reads it takes one width alone, or raises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.routing import PLAIN, short_name
from ecospa_fx.sizes import static

aten = torch.ops.aten
_PASSING = PLAIN | {"dropout"}


def settle_width(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A view with the width that its reader demands, in place of one with a width that data decide.

    Requires that the other sizes are told, so that a call that fitted no reader raises still.

    Args:
        graph: a normalised graph, which is changed.
        node: any node of it.

    Returns:
        The new view, or None where nothing had to be told.
    """
    sizes = _told(node)
    width = _demanded(node) if sizes else None
    if width is None:
        return None
    new = graph.call_function(aten.reshape.default, (node.args[0], [*sizes[:-1], width]))
    value = node.meta["val"]
    new.meta = {**node.meta, "val": value.new_empty([*value.shape[:-1], width])}
    try:
        told = _following(node, new.meta["val"])
    except Exception:  # torch cannot tell a size without the data, so labels cannot either
        graph.erase_node(new)
        return None
    for reader, value in told.items():
        reader.meta["val"] = value
    return new


def _following(node: fx.Node, value: Any) -> dict[fx.Node, Any]:
    """What readers of ``node`` give once it has the sizes of ``value``, as far as their sizes change."""
    told = {node: value}
    waiting = [node]
    while waiting:
        for user in waiting.pop(0).users:
            if user.op != "call_function":
                continue
            args, kwargs = fx.map_arg((user.args, user.kwargs), lambda n: told.get(n, n.meta["val"]))
            fresh = user.target(*args, **kwargs)  # type: ignore[operator]
            if _sizes(fresh) != _sizes(told.get(user, user.meta["val"])):
                told[user] = fresh
                waiting.append(user)
    del told[node]
    return told


def _sizes(value: Any) -> list[str]:
    return [str(v.shape) if isinstance(v, torch.Tensor) else str(v) for v in pytree.tree_leaves(value)]


def _told(node: fx.Node) -> list[Any]:
    """Sizes of a view whose last one is free, if it tells all others."""
    if node.target is not aten.reshape.default or static(node.meta["val"].shape[-1]) is not None:
        return []
    sizes = list(named_arguments(node, lambda n: n)["shape"])
    return [] if not sizes or any(isinstance(n, int) and n == -1 for n in sizes[:-1]) else sizes


def _readers(node: fx.Node) -> list[fx.Node]:
    """Copies of a tensor, in order."""
    found, waiting = [], [node]
    while waiting:
        for user in waiting.pop().users:
            if user.op == "call_function" and short_name(user.target) in _PASSING:
                found.append(user)
                waiting.append(user)
    return found


def _demanded(node: fx.Node) -> int | None:
    """The last size that a reader of ``node``, or of a copy of it, takes alone."""
    for copy in (node, *_readers(node)):
        for user in copy.users:
            width = _width(user, copy)
            if width is not None:
                return width
    return None


def _width(user: fx.Node, read: fx.Node) -> int | None:
    if user.target is aten.linear.default and user.args[0] is read:
        return static(user.args[1].meta["val"].shape[-1])  # type: ignore[union-attr]
    if user.target in (aten.matmul.default, aten.mm.default) and user.args[0] is read:
        other = user.args[1].meta["val"]  # type: ignore[union-attr]
        return static(other.shape[-2 if other.dim() > 1 else -1])
    if user.target in (aten.layer_norm.default, aten.rms_norm.default) and user.args[0] is read:
        return static(user.args[1][-1])  # type: ignore[index,arg-type]
    return None
