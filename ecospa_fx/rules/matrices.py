"""Linear algebra: a matrix is solved, decomposed or raised as a whole; what lies outside it passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ecospa_fx.arrays import along
from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.meet import both, either, meet, operand
from ecospa_fx.rules.reductions import axes_of
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

_WHOLE = "a matrix is solved or decomposed as a whole"


def _outside(call: Call, value: Value) -> Arrays:
    return spared(call, value, (value.rank - 2, value.rank - 1), _WHOLE, keep_zero=False)


def _leading(call: Call, arrays: Arrays) -> Arrays:
    """Without the last axes, where the result is a number for each matrix."""
    return rearrange(arrays, lambda ids: ids.reshape(ids.shape[: call.out.rank]))


def _regular(call: Call, value: Value) -> Arrays:
    call.pin((a for a in value.arrays if a.zero), "a matrix of zeros has no inverse")
    return _outside(call, value)


@rule(
    "aten.inverse.default",
    "aten.linalg_inv.default",
    "aten.linalg_cholesky.default",
    "aten.cholesky.default",
    "aten.logdet.default",
)
def inverse(call: Call) -> Arrays:
    """A function of matrices that have an inverse."""
    return _leading(call, _regular(call, next(iter(call.values()))))


@rule(
    "aten.matrix_exp.default",
    "aten.linalg_matrix_exp.default",
    "aten.linalg_matrix_power.default",
    "aten.det.default",
    "aten.linalg_det.default",
    "aten.linalg_svdvals.default",
)
def whole(call: Call) -> Arrays:
    """The last two axes belong together; those that are gone afterwards have no labels."""
    return _leading(call, _outside(call, next(iter(call.values()))))


@rule("aten.linalg_solve.default", "aten.linalg_solve_triangular.default")
def solve(call: Call) -> Arrays:
    """Columns of the right side are solved one by one."""
    name = "A" if "A" in call.args else "self"
    a, b = call.value(name), call.value("B")
    if a.rank != b.rank or not call.get("left", True):
        return call.refuse(_WHOLE)
    rows = b.rank - 2
    right = replace(b, arrays=spared(call, b, [rows], _WHOLE))
    axes = (*range(rows), b.rank, b.rank + 1)
    left = replace(a, arrays=_regular(call, a))
    shape = [*call.out.shape[:rows], 1, call.out.shape[-1], 1, 1]
    arrays = meet(call, shape, [("B", right, tuple(range(b.rank))), (name, left, axes)], lambda f: f[0])
    return rearrange(arrays, lambda ids: ids.reshape(ids.shape[: b.rank]))


@rule("aten.linalg_cross.default", "aten.cross.default")
def cross(call: Call) -> Arrays:
    """Three neighbours make one vector; other axes meet."""
    axis, rank = call.axis(default=-1), call.out.rank
    operands = []
    for name in ("self", "other"):
        value = call.value(name)
        arrays = spared(call, value, [axis], "the three parts of a vector")
        operands.append((name, replace(value, arrays=arrays), tuple(range(rank))))
    return meet(call, [1 if a == axis else n for a, n in enumerate(call.out.shape)], operands, either)


@rule("aten.linalg_matrix_norm.str_ord")
def matrix_norm(call: Call) -> Arrays:
    """The root of the sum of all squares, or a norm that needs the matrix whole."""
    x = call.value("self")
    axes = axes_of(call) if "dim" in call.args else [x.rank - 2, x.rank - 1]
    arrays = spared(call, x, axes, _WHOLE, keep_zero=False)
    rest = [a for a in range(x.rank) if call.get("keepdim") or a not in axes]
    return rearrange(arrays, lambda ids: ids.reshape([ids.shape[a] for a in rest]))


@rule("aten.diagonal.default")
def diagonal(call: Call) -> Arrays:
    """Row ``i`` and column ``i`` go together, and the entry with them."""
    x = call.value("self")
    a, b = (int(call.get(n, d)) % x.rank for n, d in (("dim1", 0), ("dim2", 1)))
    lines = {axis: [r for r in x.arrays if axis in r.axes] for axis in (a, b)}
    plain = all(len(r) == 1 and r[0].axes == {axis} for axis, r in lines.items())
    square = x.shape[a] == x.shape[b] and not call.get("offset", 0)
    rest = spared(call, x, () if plain and square else (a, b), "cut along its diagonal")
    kept = [axis for axis in range(x.rank) if axis not in (a, b)]
    result = [_on(r, kept) for r in rest if not r.axes & {a, b}]
    if plain and square:
        first, second = lines[a][0], lines[b][0]
        call.space.union(first.ids.ravel(), second.ids.ravel())
        result.append(LabelArray(along(first.ids, call.out.rank, -1), either((first.zero, second.zero))))
    return tuple(result)


def _on(array: LabelArray, axes: list[int]) -> LabelArray:
    return LabelArray(array.ids.reshape([*(array.ids.shape[a] for a in axes), 1]), array.zero)


@rule("aten.diag_embed.default", "aten.diag.default")
def diag_embed(call: Call) -> Arrays:
    """Entry ``i`` becomes row ``i`` and column ``i``."""
    x = call.value("self")
    places = [int(call.get(n, d)) for n, d in (("dim1", -2), ("dim2", -1))]
    if call.get("offset", 0) or call.get("diagonal", 0) or places != [-2, -1] or call.out.rank != x.rank + 1:
        return spared(call, x, range(x.rank), "a diagonal of another form")
    result = []
    for array in x.arrays:
        if x.rank - 1 not in array.axes:
            result.append(LabelArray(np.expand_dims(array.ids, -1), array.zero))
        elif array.axes == {x.rank - 1}:
            line = array.ids.reshape(-1)
            result += [LabelArray(along(line, x.rank + 1, axis), array.zero) for axis in (-2, -1)]
        else:
            call.pin([array], "a diagonal for each of several rows")
    return tuple(result)


@rule("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(call: Call) -> list[Arrays]:
    """Every tensor along an axis of its own, in all results."""
    lines, rank = call.args["tensors"], call.out.rank
    order = list(range(rank))
    if call.get("indexing") == "xy" and rank > 1:
        order[:2] = [1, 0]
    return [
        tuple(
            LabelArray(along(a.ids, rank, order[i]), a.zero and i == output)
            for i, line in enumerate(lines)
            for a in line.arrays
        )
        for output in range(len(lines))
    ]


@rule("aten.broadcast_tensors.default")
def broadcast_tensors(call: Call) -> list[Arrays]:
    """All tensors in the sizes that they have together, where they meet."""
    rank = call.out.rank
    operands = [operand(f"tensors[{i}]", v, rank) for i, v in enumerate(call.args["tensors"])]
    arrays = meet(call, call.out.shape, operands, both)
    return [arrays] * len(call.outputs)
