"""Unfuse: let the parts of a fused projection go separate ways before heads are told apart.

``qkv.view(B, S, H, 3, D)`` followed by a selection along the ``3`` puts queries, keys and values into one
box, whose rows would have to keep equal counts. The same parts are ranges of ``[H, 3 * D]``, where each may
keep a count of its own. This pass moves such selections in front of the view. Where the ``3`` comes last,
``[H, D, 3]``, the parts are every third index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.propagate import named_arguments, target_name
from ecospa_fx.passes.routing import PLAIN
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.rules.views import groups
from ecospa_fx.sizes import hint, static

aten = torch.ops.aten
VIEWS = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.unflatten.int")


@dataclass(frozen=True)
class _Part:
    """A range of the dispatched axis, the way to it, and the node that takes it."""

    path: tuple[fx.Node, ...]
    axis: int
    start: int
    stop: int
    taker: fx.Node
    selects: bool


def unfuse(graph: fx.Graph) -> bool:
    """Rewrite ``graph`` in place.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in views(graph):
        found = ((axis, _dispatched(node, axis, last)) for axis, last in _candidates(node))
        axis, parts = next(((axis, parts) for axis, parts in found if parts), (0, []))
        for part in parts:
            _move(graph, node, axis, part)
            changed = True
    if changed:
        sweep(graph)
    return changed


def views(graph: fx.Graph) -> Iterator[fx.Node]:
    """The views that a graph has at first; whoever asks may change it on the way."""
    for node in list(graph.nodes):
        if target_name(node) in VIEWS and isinstance(node.meta.get("val"), torch.Tensor):
            yield node


def sizes_of(node: Any) -> list[int]:
    """Sizes of a node's tensor, hints for symbolic ones."""
    return [hint(n) for n in node.meta["val"].shape]


def source_of(node: fx.Node) -> fx.Node:
    """The tensor that a view is one of."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _candidates(node: fx.Node) -> Iterator[tuple[int, bool]]:
    """Output axes that a view splits off a static axis, and whether none comes after them."""
    for wide in split_axes(node):
        yield from ((axis, axis == wide[-1]) for axis in wide)


def split_axes(node: fx.Node) -> Iterator[list[int]]:
    """The axes that a view splits off one static axis, those of size 1 left out; for each such axis."""
    before, after = sizes_of(source_of(node)), sizes_of(node)
    if 0 in before:
        return
    for ins, outs in groups(before, after):
        wide = [a for a in outs if after[a] > 1]
        fixed = all(static(node.meta["val"].shape[a]) is not None for a in outs)
        if len([a for a in ins if before[a] > 1]) == 1 and len(wide) > 1 and fixed:
            yield wide


def _dispatched(node: fx.Node, axis: int, last: bool) -> list[_Part]:
    """All ranges taken along ``axis``, or nothing if somebody reads it whole, or several of the last one."""
    parts: list[_Part] = []
    waiting: list[tuple[tuple[fx.Node, ...], int]] = [((), axis)]
    while waiting:
        path, at = waiting.pop()
        for user in (path[-1] if path else node).users:
            there = moved(user, at)
            taken = list(_taken(user, at, path)) if there is None else []
            if there is None and not taken:
                return []
            parts += taken
            if there is not None:
                waiting.append(((*path, user), there))
    return [] if last and any(p.stop - p.start != 1 for p in parts) else parts


def moved(user: fx.Node, axis: int) -> int | None:
    """Where ``axis`` goes in an operator that only rearranges axes, else None."""
    name = target_name(user)
    if not isinstance(user.args[0], fx.Node):
        return None
    rank = len(user.args[0].meta["val"].shape)
    args = named_arguments(user, lambda n: n)
    if name.split(".")[1:2] and name.split(".")[1] in PLAIN and name.startswith("aten."):
        return axis
    if name == "aten.transpose.int":
        a, b = args["dim0"] % rank, args["dim1"] % rank
        return int({a: b, b: a}.get(axis, axis))
    if name == "aten.permute.default":
        return [int(d) % rank for d in args["dims"]].index(axis)
    if name == "aten.unsqueeze.default":
        return axis + int(args["dim"] % (rank + 1) <= axis)
    if name == "aten.squeeze.dim" and args["dim"] % rank != axis:
        gone = hint(user.args[0].meta["val"].shape[args["dim"]]) == 1
        return axis - int(gone and args["dim"] % rank < axis)
    return None


def _taken(user: fx.Node, axis: int, path: tuple[fx.Node, ...]) -> Iterator[_Part]:
    """The ranges that ``user`` takes along ``axis``, if that is what it does."""
    name, args = target_name(user), named_arguments(user, lambda n: n)
    source = user.args[0].meta["val"] if user.args and isinstance(user.args[0], fx.Node) else None
    dim = args.get("dim", 0)
    if not isinstance(source, torch.Tensor) or not isinstance(dim, int):
        return
    if not source.dim() or dim % source.dim() != axis:
        return
    size = hint(source.shape[axis])
    if name == "aten.select.int":
        index = args["index"] % size
        yield _Part(path, axis, index, index + 1, user, True)
    elif name == "aten.slice.Tensor" and args.get("step", 1) == 1 and source.dim() > 1:
        start, stop, _ = slice(args.get("start"), args.get("end")).indices(size)
        yield _Part(path, axis, start, stop, user, False)
    elif name in (
        "aten.unbind.int",
        "aten.chunk.default",
        "aten.split.Tensor",
        "aten.split_with_sizes.default",
    ):
        start = 0
        for i, piece in enumerate(user.meta["val"]):
            width = 1 if "unbind" in name else hint(piece.shape[axis])
            for getter in user.users:
                if getter.args[1] == i:
                    yield _Part(path, axis, start, start + width, getter, "unbind" in name)
            start += width


def _move(graph: fx.Graph, view: fx.Node, axis: int, part: _Part) -> None:
    """Take the range before the view, then do again what was done on the way."""
    after: list[Any] = [n if static(n) is None else static(n) for n in view.meta["val"].shape]
    lead, inner = after[:axis], after[axis + 1 :]
    outs = next(o for _, o in groups(sizes_of(source_of(view)), sizes_of(view)) if axis in o)
    block = prod(int(after[a]) for a in outs if a > axis)
    rest = [n for a, n in enumerate(after) if a > axis and a not in outs]
    whole = prod(int(after[a]) for a in outs)
    with graph.inserting_before(part.taker):
        if block > 1 or part.stop - part.start > 1:
            flat, at, stride = [*lead, int(after[axis]) * block, *rest], axis, 1
            start, stop = part.start * block, part.stop * block
        else:
            flat, at, stride = [*after[: outs[0]], whole, *rest], outs[0], int(after[axis])
            start, stop = part.start, whole
        wide = emit(graph, view, aten.reshape.default, source_of(view), symbols(graph, view, flat))
        every = [stride] if stride > 1 else []
        piece = emit(graph, part.taker, aten.slice.Tensor, wide, at, start, stop, *every)
        sizes = symbols(graph, view, [*lead, part.stop - part.start, *inner])
        new = emit(graph, view, aten.reshape.default, piece, sizes)
        for step in part.path:
            new = emit(graph, step, step.target, new, *step.args[1:], **step.kwargs)
        if part.selects:
            new = emit(graph, part.taker, aten.select.int, new, part.axis, 0)
    part.taker.replace_all_uses_with(new)


def symbols(graph: fx.Graph, view: fx.Node, sizes: list[Any]) -> list[Any]:
    """Symbolic sizes as nodes: read from the tensor that is viewed, or from the view's own arguments."""
    given = {
        str(n.meta["val"]): n for n in view.all_input_nodes if isinstance(n.meta.get("val"), torch.SymInt)
    }
    shape = [str(s) for s in source_of(view).meta["val"].shape]
    result: list[Any] = []
    for size in sizes:
        if isinstance(size, int):
            result.append(size)
        elif str(size) in given:
            result.append(given[str(size)])
        else:
            result.append(emit(graph, view, aten.sym_size.int, source_of(view), shape.index(str(size))))
    return result


def emit(graph: fx.Graph, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node with the metadata of ``like`` and the value that its own operator gives."""
    node = graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k != "val"}
    node.meta["val"] = target(
        *fx.map_arg(args, lambda n: n.meta["val"]), **fx.map_arg(kwargs, lambda n: n.meta["val"])
    )
    return node
