"""Views: told by which axes of the input make up which axes of the output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx.labels import LabelArray, outer_axes
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import reduced
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site

FLATTENED = "two independent removals would meet on one flattened axis"

Group = tuple[list[int], list[int]]


def groups(before: Sequence[int], after: Sequence[int]) -> list[Group]:
    """Which input axes make up which output axes: the finest split with equal products.

    >>> groups((2, 5, 12), (10, 3, 4))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    head, i, j = _leading(before, after)
    if i == len(before) and j == len(after):
        return head
    # A size that depends on data: what lies behind it is matched from the right.
    tail, k, m = _leading(before[i:][::-1], after[j:][::-1])
    n_before, n_after = len(before), len(after)
    middle = (list(range(i, n_before - k)), list(range(j, n_after - m)))
    mirrored = [
        ([n_before - 1 - a for a in ins[::-1]], [n_after - 1 - a for a in outs[::-1]]) for ins, outs in tail
    ]
    return [*head, middle, *mirrored[::-1]]


def _leading(before: Sequence[int], after: Sequence[int]) -> tuple[list[Group], int, int]:
    """Groups from the left as far as products agree, and how many axes they take."""
    result: list[Group] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        left, right = _product(before, ins), _product(after, outs)
        while left != right:
            grow, sizes = (ins, before) if left < right else (outs, after)
            following = (grow[-1] if grow else len(sizes) - 1) + 1
            if following >= len(sizes):
                return result, i, j
            grow.append(following)
            left, right = _product(before, ins), _product(after, outs)
        result.append((ins, outs))
        i, j = i + len(ins), j + len(outs)
    return result, i, j


def _product(sizes: Sequence[int], axes: Sequence[int]) -> int:
    return int(np.prod([sizes[a] for a in axes], initial=1))


def _sizes(site: Site) -> None:
    """Write the physical sizes where the call names sizes."""
    layout = site.layout_out()
    name = next(n for n in ("size", "shape", "sizes") if n in site.args)
    sizes = list(site.args[name])
    offset = site.call.axis() if name == "sizes" else 0
    for i, size in enumerate(sizes):
        axis = offset + i
        if layout.changed(axis) and not (isinstance(size, int) and size == -1):
            sizes[i] = site.scaled(size, layout.shape[axis], layout.dense[axis])
    site.set(name, sizes)


def _keep(site: Site) -> None:
    """``flatten`` names no sizes."""


@rule(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.unflatten.int",
    rewrite=_sizes,
)
@rule("aten.flatten.using_ints", "aten.ravel.default", rewrite=_keep)
def view(call: Call) -> Arrays:
    """The same entries in row-major order under other axes."""
    return _viewed(call)


def _viewed(call: Call) -> Arrays:
    x, out = call.value("self"), call.out
    if 0 in x.shape:
        return ()
    arrays = x.arrays
    parts = groups(x.shape, out.shape)
    for ins, outs in parts:
        if _product(x.shape, ins) != _product(out.shape, outs):
            call.pin((a for a in arrays if a.axes & set(ins)), "viewed under sizes that depend on data")
            arrays = tuple(a for a in arrays if not a.axes & set(ins))
        for array in arrays:
            _agree_if_crossed(call, arrays, array, ins)
        if len(ins) > 1:
            arrays = _finest(call, arrays, frozenset(ins))
    moved = tuple(_regroup(a, x.shape, out.shape, parts) for a in arrays)
    call.pin((a for a in moved if not a.axes), "an axis without extent")
    return tuple(a for a in moved if a.axes)


def _physical(site: Site) -> None:
    """The sizes that are left, instead of those of another tensor."""
    layout, out = site.layout_out(), site.call.out
    sizes = [
        site.emit(torch.ops.aten.sym_size.int, site.node("other"), a) if out.symbolic[a] else layout.shape[a]
        for a in range(out.rank)
    ]
    site.result = site.emit(torch.ops.aten.reshape.default, site.node("self"), sizes)


@rule("aten.view_as.default", "aten.reshape_as.default", rewrite=_physical)
def view_as(call: Call) -> Arrays:
    """A view whose sizes are those of another tensor."""
    return _viewed(call)


def _finest(call: Call, arrays: Arrays, merged: frozenset[int]) -> Arrays:
    """Of the arrays on axes that are merged, the one over most of them speaks for those inside it.

    Of two that are independent the inner one stays: features, where the outer one is that of learnt queries.
    """
    inside = [a for a in arrays if a.axes & merged]
    if not inside:
        return arrays
    finest = min(
        inside,
        key=lambda a: (
            -len(a.axes & merged),
            call.space.is_slot(a.ids),
            -len(a.axes),
            sorted(-i for i in a.axes),
        ),
    )
    together = finest.axes & merged
    outside = [a for a in inside if not a.axes & merged <= together]
    call.pin(outside, FLATTENED)
    coarse = [a for a in inside if a.axes < finest.axes and a.axes & merged < together]
    for array in coarse:
        call.space.imply(array.ids, finest.ids)
    return tuple(a for a in arrays if a not in outside and a not in coarse)


def _agree_if_crossed(call: Call, arrays: Arrays, array: LabelArray, ins: Sequence[int]) -> None:
    """Row-major order survives a merge only if the inner axis comes last; else let all rows agree."""
    covered = [a for a in ins if a in array.axes]
    outer = outer_axes(array, arrays)
    inner = [a for a in covered if a not in outer]
    if len(covered) > 1 and inner and covered[-1] not in inner:
        rows = array.ids.take([0], covered[-1])
        call.space.union(array.ids, rows)


def _regroup(
    array: LabelArray, before: Sequence[int], after: Sequence[int], parts: list[Group]
) -> LabelArray:
    """The label array under the output's axes."""
    ids, shape = array.ids, []
    full = list(ids.shape)
    for ins, outs in parts:
        labelled = any(ids.shape[a] > 1 for a in ins)
        for a in ins:
            full[a] = before[a] if labelled else 1
        shape += [after[a] if labelled else 1 for a in outs]
    return reduced(LabelArray(np.broadcast_to(ids, full).reshape(shape), array.zero))


def with_slots(call: Call, arrays: Arrays) -> Arrays:
    """Give every array that spans several new axes label arrays for its outer ones.

    An array over heads and dims needs one over heads: only then can a whole head go. A slot dies
    only after everything in it has.
    """
    known = {a.axes for a in arrays}
    made: list[LabelArray] = []
    for array in sorted(arrays, key=lambda a: len(a.axes)):
        outer: frozenset[int] = frozenset().union(*(c for c in known if c < array.axes))
        fresh = sorted(array.axes - outer)
        for axis, _ in pairwise(fresh):
            outer = outer | {axis}
            shape = [n if a in outer else 1 for a, n in enumerate(array.ids.shape)]
            slot = call.slots(shape, array.zero)
            call.space.imply(slot.ids, array.ids)
            known.add(outer)
            made.append(slot)
    return (*arrays, *made)
