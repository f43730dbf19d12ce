"""Views: told by which axes of the input make up which axes of the output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ecospa_fx.labels import LabelArray
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import reduced
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site

Group = tuple[list[int], list[int]]


def groups(before: Sequence[int], after: Sequence[int]) -> list[Group]:
    """Which input axes make up which output axes: the finest split with equal products.

    >>> groups((2, 5, 12), (10, 3, 4))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    result: list[Group] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(ins), j + len(outs)
        left, right = _product(before, ins), _product(after, outs)
        while left != right:
            if left < right:
                ins.append(i)
                i, left = i + 1, left * before[i]
            else:
                outs.append(j)
                j, right = j + 1, right * after[j]
        result.append((ins, outs))
    return result


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
    x, out = call.value("self"), call.out
    if 0 in x.shape:
        return ()
    arrays = x.arrays
    rank = out.rank
    parts = groups(x.shape, out.shape)
    for ins, _ in parts:
        if len(ins) > 1:
            arrays = _nested(call, arrays, frozenset(ins))
        for array in arrays:
            _agree_if_crossed(call, arrays, array, ins)
    moved = [(_regroup(a, x.shape, out.shape, parts, rank), a) for a in arrays]
    return _absorb(call, moved)


def _nested(call: Call, arrays: Arrays, merged: frozenset[int]) -> Arrays:
    """Of the arrays on axes that are merged, those stay that lie inside the one over most axes."""
    inside = [a for a in arrays if a.axes & merged]
    finest = min(inside, key=_fineness, default=None)
    others = [a for a in inside if finest is not None and not a.axes <= finest.axes]
    call.pin(others, "two independent removals would meet on one flattened axis")
    return tuple(a for a in arrays if a not in others)


def _fineness(array: LabelArray) -> tuple[int, list[int]]:
    return -len(array.axes), sorted(array.axes)


def _agree_if_crossed(call: Call, arrays: Arrays, array: LabelArray, ins: Sequence[int]) -> None:
    """Row-major order survives a merge only if the inner axis comes last; else let all rows agree."""
    covered = [a for a in ins if a in array.axes]
    outer = {a for other in arrays if other.axes < array.axes for a in other.axes}
    inner = [a for a in covered if a not in outer]
    if len(covered) > 1 and inner and covered[-1] not in inner:
        rows = array.ids.take([0], covered[-1])
        call.space.union(array.ids, rows)


def _regroup(
    array: LabelArray, before: Sequence[int], after: Sequence[int], parts: list[Group], rank: int
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


def _absorb(call: Call, moved: list[tuple[LabelArray, LabelArray]]) -> Arrays:
    """One array per set of axes: the finest stays, coarser ones imply it."""
    table: dict[frozenset[int], list[tuple[LabelArray, LabelArray]]] = {}
    for new, old in moved:
        if new.axes:
            table.setdefault(new.axes, []).append((new, old))
        else:
            call.pin([old], "an axis without extent")
    return tuple(_finest(call, entries) for entries in table.values())


def _finest(call: Call, entries: list[tuple[LabelArray, LabelArray]]) -> LabelArray:
    (best, _), *others = sorted(entries, key=lambda e: _fineness(e[1]))
    for new, _ in others:
        call.space.imply(new.ids, best.ids)
    return best


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
