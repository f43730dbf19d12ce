"""Operators that put tensors next to each other: cat and stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import rearrange, reduced
from ecospa_fx.rules.meet import both, meet
from ecospa_fx.rules.registry import rule


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(call: Call) -> Arrays:
    """Pieces one after another."""
    pieces: Sequence[Value] = call.args["tensors"]
    axis = int(call.get("dim", 0)) % call.out.rank
    full = [(f"tensors[{i}]", p) for i, p in enumerate(pieces) if p.rank == call.out.rank and p.shape[axis]]
    names, pieces = [n for n, _ in full], [p for _, p in full]
    along = joined(call, pieces, axis)
    others = [
        Value(p.shape, p.symbolic, tuple(a for a in p.arrays if axis not in a.axes), p.nature) for p in pieces
    ]
    axes = tuple(range(call.out.rank))
    operands = [(n, flat(v, axis), axes) for n, v in zip(names, others, strict=True)]
    shape = [1 if a == axis else n for a, n in enumerate(call.out.shape)]
    return (*meet(call, shape, operands, both), *along)


def flat(value: Value, axis: int) -> Value:
    """``value`` as if its size along ``axis`` were 1."""
    return Value(
        tuple(1 if a == axis else n for a, n in enumerate(value.shape)),
        value.symbolic,
        value.arrays,
        value.nature,
    )


def joined(call: Call, pieces: Sequence[Value], axis: int) -> Arrays:
    """The label arrays that cover the axis of the concatenation."""
    covered = [a for p in pieces for a in p.on(axis)]
    if not covered:
        return ()
    if call.out.symbolic[axis]:
        call.pin(covered, "concatenated along a symbolic axis")
        return ()
    finest = [_finest(call, p.on(axis)) for p in pieces]
    widest = max((a.axes for a in covered), key=len)
    if any(not a.axes <= widest for a in covered) or any(len(f) > 1 for f in finest):
        call.pin(covered, "pieces with labels over different axes are concatenated")
        return ()
    parts, zero = [], True
    for piece, found in zip(pieces, finest, strict=True):
        array = next(iter(found), None) or _bare(call, piece, axis)
        shape = [call.out.shape[a] if a in widest and a != axis else n for a, n in enumerate(array.ids.shape)]
        parts.append(np.broadcast_to(array.ids, shape))
        zero = zero and array.zero
    return (LabelArray(np.concatenate(parts, axis), zero),)


def _finest(call: Call, arrays: Arrays) -> Arrays:
    """Of arrays on one axis, that over most axes speaks for those inside it; else all of them."""
    found = max(arrays, key=lambda a: len(a.axes), default=None)
    coarse = [a for a in arrays if a is not found]
    if found is None or any(not a.axes < found.axes for a in coarse):
        return arrays
    for array in coarse:
        call.space.imply(array.ids, found.ids)
    return (found,)


def _bare(call: Call, piece: Value, axis: int) -> LabelArray:
    shape = [n if a == axis else 1 for a, n in enumerate(piece.shape)]
    array = LabelArray(call.space.fresh(shape), zero=False)
    call.pin([array], "a piece without labels is concatenated here")
    return array


@rule("aten.stack.default")
def stack(call: Call) -> Arrays:
    """Pieces along a new axis."""
    pieces: Sequence[Value] = call.args["tensors"]
    axis = int(call.get("dim", 0)) % call.out.rank
    lifted = [
        Value(
            (*p.shape[:axis], 1, *p.shape[axis:]),
            (*p.symbolic[:axis], False, *p.symbolic[axis:]),
            rearrange(p.arrays, lambda ids: np.expand_dims(ids, axis)),
            p.nature,
        )
        for p in pieces
    ]
    coverages = [{a.axes for a in p.arrays} for p in lifted]
    if any(c != coverages[0] for c in coverages):
        call.pin((a for p in pieces for a in p.arrays), "pieces with labels over different axes are stacked")
        return ()
    number = call.slots([len(pieces) if a == axis else 1 for a in range(call.out.rank)], zero=True)
    call.pin([number], "every stacked piece stays")
    return (number, *(_stacked(call, lifted, axes, axis, coverages[0]) for axes in coverages[0]))


def _stacked(
    call: Call, pieces: Sequence[Value], axes: frozenset[int], axis: int, all_axes: set[frozenset[int]]
) -> LabelArray:
    """The innermost array gets one row per piece; the outer ones are shared by all pieces."""
    parts = [a for p in pieces for a in p.arrays if a.axes == axes]
    zero = all(p.zero for p in parts)
    if not any(axes < other for other in all_axes):
        return reduced(LabelArray(np.concatenate([p.ids for p in parts], axis), zero))
    for part in parts[1:]:
        call.space.union(parts[0].ids, part.ids)
    return LabelArray(parts[0].ids, zero)
