"""Simplify: operators told by simpler ones that rules see through.

A lookup by constant numbers (``qkv[:, :, :, [-2]]``) is a slice, which keeps its labels; a lookup by numbers
that only the run knows does not. A slice of everything is what it slices. Strides that let chunks overlap
are windows. An ``einsum`` over many tensors is a chain over two at a time. A mask that repeats one value for
all features is that value: it takes whole rows. What is filled with a number is made of it. Zeros leave sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.extents import settle_width
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.routing import PLAIN, short_name
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.passes.unfuse import emit
from ecospa_fx.passes.zeros import without_zeros
from ecospa_fx.sizes import same_size, same_sizes, static, supposed

aten = torch.ops.aten
_COPIES = PLAIN | {"lift_fresh", "lift_fresh_copy"}
_MOST_RUNS, _ENDLESS = 8, (1 << 63) - 1


def simplify(graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> bool:
    """Rewrite ``graph`` in place.

    Args:
        graph: a normalised graph.
        constants: tensors that the capture has found written into the model's code, by name.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new = (
                _whole(node)
                or _sliced(graph, node, constants)
                or _windows(graph, node)
                or _pairwise(graph, node)
                or _by_rows(graph, node)
                or _filled(graph, node, constants)
                or settle_width(graph, node)
            )
        if new is not None:
            node.replace_all_uses_with(new)
            changed = True
    if changed:
        sweep(graph)
    return without_zeros(graph) or changed


def _whole(node: fx.Node) -> fx.Node | None:
    """What a slice takes that leaves nothing out."""
    if node.target is not aten.slice.Tensor:
        return None
    args = named_arguments(node, lambda n: n)
    source, axis = args["self"], args.get("dim", 0)
    start, stop, step = args.get("start"), args.get("end"), args.get("step", 1)
    if start not in (None, 0) or step != 1 or not isinstance(source, fx.Node):
        return None
    size = static(source.meta["val"].shape[axis])
    everything = stop is None or (isinstance(stop, int) and stop >= (_ENDLESS if size is None else size))
    return source if everything else None


def _sliced(graph: fx.Graph, node: fx.Node, constants: Mapping[str, torch.Tensor]) -> fx.Node | None:
    """Slices in place of a lookup along one axis by known numbers."""
    found = _lookup(node)
    if found is None:
        return None
    source, axis, index = found
    numbers = _known(index, constants)
    size = static(source.meta["val"].shape[axis])
    if numbers is None or size is None or not numbers:
        return None
    ranges = _runs([n % size for n in numbers])
    if len(ranges) > _MOST_RUNS:
        return None
    pieces = [emit(graph, node, aten.slice.Tensor, source, axis, a, b) for a, b in ranges]
    return pieces[0] if len(pieces) == 1 else emit(graph, node, aten.cat.default, pieces, axis)


def _lookup(node: fx.Node) -> tuple[fx.Node, int, fx.Node] | None:
    """What is looked up, along which axis, and by what."""
    if node.target is aten.index_select.default:
        source, axis, index = node.args
        return source, axis % source.meta["val"].dim(), index  # type: ignore[union-attr,return-value]
    if node.target is not aten.index.Tensor:
        return None
    source, indices = node.args
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]  # type: ignore[arg-type]
    return (source, *given[0]) if len(given) == 1 else None  # type: ignore[return-value]


def _known(node: Any, constants: Mapping[str, torch.Tensor]) -> list[int] | None:
    """The numbers in a tensor of integers that the graph holds as a constant."""
    value = _constant(node, constants)
    whole = value is not None and value.dim() == 1 and value.dtype in (torch.int64, torch.int32)
    return value.tolist() if whole and value is not None else None


def _filled(graph: fx.Graph, node: fx.Node, constants: Mapping[str, torch.Tensor]) -> fx.Node | None:
    """A new tensor in place of one that is filled with a known number."""
    if node.target not in (aten.fill.Scalar, aten.fill.Tensor):
        return None
    source, value = node.args[:2]
    value = _constant(value, constants) if isinstance(value, fx.Node) else value
    number = value.item() if isinstance(value, torch.Tensor) else value
    if number is None:
        return None
    if number == 0:
        return emit(graph, node, aten.zeros_like.default, source)
    return emit(graph, node, aten.full_like.default, source, number)


def _constant(node: Any, constants: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The tensor that a node stands for, or a copy of which it is."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        name = short_name(node.target).rstrip("_")
        if name not in _COPIES:
            return None
        node = node.args[0]
    return constants.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ranges of consecutive numbers.

    >>> _runs([4, 5, 0, 1, 2])
    [(4, 6), (0, 3)]
    """
    breaks = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise([0, *breaks, len(numbers)])]


def _windows(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """``unfold`` in place of strides by which neighbouring chunks overlap (Longformer)."""
    if node.target is not aten.as_strided.default or len(node.args) != 3:
        return None
    source: Any = node.args[0]
    axis, width, split = _chunked(source, node)
    if width is None:
        return None
    value, out = source.meta["val"], node.meta["val"]
    value = value.flatten(axis, axis + 1) if split else value
    sizes, had = [supposed(n) for n in value.shape], [supposed(n) for n in value.stride()]
    step = supposed(out.stride(axis)) // max(had[axis], 1)
    count = (sizes[axis] - width) // step + 1 if step else 0
    if [supposed(n) for n in out.shape] != [*sizes[:axis], count, width, *sizes[axis + 1 :]]:
        return None
    if [supposed(n) for n in out.stride()] != [*had[:axis], step * had[axis], had[axis], *had[axis + 1 :]]:
        return None
    line = emit(graph, node, aten.flatten.using_ints, source, axis, axis + 1) if split else source
    moved = emit(graph, node, aten.unfold.default, line, axis, width, step)
    return emit(graph, node, aten.movedim.int, moved, -1, axis + 1)


def _chunked(source: fx.Node, node: fx.Node) -> tuple[int, int | None, bool]:
    """The axis along which windows lie, how wide they are, and whether the next axis is a part of it."""
    before, after = source.meta["val"], node.meta["val"]
    had, got = (
        [(supposed(n), supposed(s)) for n, s in zip(v.shape, v.stride(), strict=True)]
        for v in (before, after)
    )
    axis = next((a for a, (x, y) in enumerate(zip(had, got, strict=False)) if x != y), len(had))
    if len(got) == len(had) + 1:
        return axis, static(after.shape[axis + 1]) if axis < len(had) else None, False
    if len(got) != len(had) or axis + 1 >= len(had) or had[axis][1] != had[axis + 1][0] * had[axis + 1][1]:
        return axis, None, False
    return axis, _written(source, axis + 1), True


def _written(node: fx.Node, axis: int) -> int | None:
    """A static size, or the number that a view was told."""
    size = static(node.meta["val"].shape[axis])
    told = named_arguments(node, lambda n: n).get("shape", ())
    return size if size is not None or axis >= len(told) or not isinstance(told[axis], int) else told[axis]


def _pairwise(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A chain of sums of products in place of one over three tensors or more."""
    if node.target is not aten.einsum.default or len(node.args[1]) < 3:  # type: ignore[arg-type]
        return None
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow or any(len(set(t.replace(".", ""))) != len(t.replace(".", "")) for t in terms):
        return None
    current, names = operands[0], terms[0]
    for i, (operand, term) in enumerate(zip(operands[1:], terms[1:], strict=True), 2):
        needed = set("".join([*terms[i:], out]))
        letters = [c for c in dict.fromkeys((names + term).replace(".", "")) if c in needed]
        dots = "..." if "..." in names + term else ""
        last = i == len(terms)
        result = out if last else dots + "".join(letters)
        current = emit(graph, node, aten.einsum.default, f"{names},{term}->{result}", [current, operand])
        names = result
    return current  # type: ignore[no-any-return]


_WIDENINGS = {"expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile"}


def _by_rows(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The mask of a scatter before it was widened to all features."""
    if node.target is not aten.masked_scatter.default:
        return None
    x, mask, source = node.args
    narrow = _narrow(mask, x.meta["val"].shape)  # type: ignore[union-attr]
    return None if narrow is None else emit(graph, node, node.target, x, narrow, source)


def _narrow(mask: Any, shape: Any) -> fx.Node | None:
    """What a mask of ``shape`` repeats along its last axis, if that is all that was done to it."""
    if not isinstance(mask, fx.Node) or not same_sizes(mask.meta["val"].shape, shape):
        return None
    while isinstance(mask, fx.Node) and mask.op == "call_function":
        name = short_name(mask.target).rstrip("_")
        source = mask.args[0] if mask.args else None
        if not isinstance(source, fx.Node) or name not in _COPIES | _WIDENINGS:
            return None
        before, after = source.meta["val"], mask.meta["val"]
        if before.dtype != after.dtype or before.device != after.device or before.dim() != after.dim():
            return None
        if not same_sizes(before.shape, after.shape):
            return source if _fits(before.shape, after.shape) else None
        mask = source
    return None


def _fits(before: Any, after: Any) -> bool:
    """Whether sizes broadcast, the last one from 1."""
    others = zip(before[:-1], after[:-1], strict=True)
    return static(before[-1]) == 1 and all(static(b) == 1 or same_size(a, b) for b, a in others)
