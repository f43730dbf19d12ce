"""Turn: heads that a projection keeps innermost, ``[D, H]``, come in front of what they hold, ``[H, D]``.

A tensor is a box, so the columns of ``[D, H]`` could only lose the same rows. Where the heads stand in front
in the end, the flat axis is shuffled first: then each head lies in one piece, and keeps what it likes. What a
fused projection has beside them, ``[D, 3, H]``, comes in front with them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.propagate import named_arguments, target_name
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.passes.unfuse import VIEWS, emit, moved, sizes_of, source_of, split_axes, symbols, views
from ecospa_fx.rules.views import groups
from ecospa_fx.sizes import static

aten = torch.ops.aten
_TAKES = {"aten.select.int": True, "aten.unbind.int": True} | dict.fromkeys(
    ("aten.slice.Tensor", "aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default"), False
)
"""Operators that take parts along one axis, and whether it goes."""


def turn(graph: fx.Graph) -> bool:
    """Rewrite ``graph`` in place.

    Returns:
        Whether anything changed.
    """
    changed = False
    for node in views(graph):
        splits = split_axes(node) if len(sizes_of(source_of(node))) > 1 else ()
        axes = next((a for a in splits if _ends_turned(node, a)), None)
        if axes is not None:
            _turn(graph, node, axes[0], axes[-1])
            changed = True
    if changed:
        sweep(graph)
    return changed


def _ends_turned(node: fx.Node, axes: list[int]) -> bool:
    """Whether whoever reads a view has the first of ``axes`` behind those that were not taken apart."""
    waiting, ends = [(node, axes[0], axes[1:])], 0
    while waiting:
        value, first, others = waiting.pop()
        for user in value.users:
            place, rest = _through(user, first), [_through(user, a) for a in others]
            if place is not None and (None not in rest or target_name(user) in _TAKES):
                waiting.append((user, place, [a for a in rest if a is not None]))
            elif _reads_turned(user, value, first, others):
                ends += 1
            else:
                return False
    return ends > 0


def _through(user: fx.Node, axis: int) -> int | None:
    """Where ``axis`` goes in an operator that moves axes, or takes parts along another one."""
    name = target_name(user) if user.op == "call_function" else ""
    if name == "getitem":
        return axis
    if not user.args or not isinstance(user.args[0], fx.Node) or name not in _TAKES:
        return moved(user, axis) if name else None
    at = named_arguments(user, lambda n: n).get("dim", 0) % len(user.args[0].meta["val"].shape)
    return None if at == axis else axis - int(_TAKES[name] and at < axis)


def _reads_turned(user: fx.Node, value: fx.Node, first: int, others: list[int]) -> bool:
    if target_name(user) == "aten.einsum.default":
        heads = [_heads_of(user, value, a) for a in others]
        return bool(heads) and all(heads) and not _heads_of(user, value, first)
    if user.op == "output" or not others or max(others) > first:
        return False
    if target_name(user) not in VIEWS:
        return True
    before, after = sizes_of(value), sizes_of(user)
    ins, outs = next((i, o) for i, o in groups(before, after) if first in i)
    return len([a for a in ins if before[a] > 1]) == len([a for a in outs if after[a] > 1]) == 1


def _heads_of(einsum: fx.Node, value: fx.Node, axis: int) -> bool:
    """Whether the letter of an axis stands in all operands and in the result."""
    equation, operands = str(einsum.args[0]).replace(" ", ""), list(einsum.args[1])  # type: ignore[arg-type]
    terms = equation.replace("->", ",").split(",")
    letters = terms[operands.index(value)] if "->" in equation and "." not in equation else ""
    return axis < len(letters) and all(letters[axis] in term for term in terms)


def _turn(graph: fx.Graph, view: fx.Node, first: int, last: int) -> None:
    """Shuffle the flat axis, split it in the new order, and give the view's own order back."""
    after: list[Any] = [n if static(n) is None else static(n) for n in view.meta["val"].shape]
    outer, rest = int(after[first]), after[first + 1 : last + 1]
    with graph.inserting_before(view):
        flat = symbols(graph, view, [*after[:first], outer * prod(rest), *after[last + 1 :]])
        node = emit(graph, view, aten.reshape.default, source_of(view), flat)
        node = emit(graph, view, aten.unsqueeze.default, node, 0)
        node = emit(graph, view, aten.transpose.int, node, 1, first + 1)
        node = emit(graph, view, aten.channel_shuffle.default, node, outer)
        node = emit(graph, view, aten.transpose.int, node, 1, first + 1)
        node = emit(graph, view, aten.squeeze.dim, node, 0)
        split = symbols(graph, view, [*after[:first], *rest, outer, *after[last + 1 :]])
        node = emit(graph, view, aten.reshape.default, node, split)
        order = [*range(first), last, *range(first, last), *range(last + 1, len(after))]
        node = emit(graph, view, aten.permute.default, node, order)
    view.replace_all_uses_with(node)
