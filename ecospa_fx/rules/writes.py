"""Writes into a part of a tensor, in functional form: a concatenation of what stays and what is new."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx.arrays import along
from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.joins import flat, joined
from ecospa_fx.rules.layout_ops import expand_arrays, rearrange
from ecospa_fx.rules.meet import both, meet
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _expanded(site: Site) -> None:
    """The source, broadcast to the physical size, in the type of what it replaces."""
    source, out, layout = site.operand("src"), site.call.out, site.layout_out()
    new = out.rank - source.rank
    sizes: list[object] = []
    for axis in range(out.rank):
        same = axis >= new and source.shape[axis - new] == out.shape[axis]
        symbol = (
            site.emit(torch.ops.aten.sym_size.int, site.node("self"), axis) if out.symbolic[axis] else None
        )
        sizes.append(-1 if same else symbol if symbol is not None else layout.shape[axis])
    typed = site.emit(torch.ops.aten.type_as.default, site.node("src"), site.node("self"))
    site.result = (
        typed if sizes == [-1] * out.rank else site.emit(torch.ops.aten.expand.default, typed, sizes)
    )


@rule("aten.copy.default", rewrite=_expanded)
def copy(call: Call) -> Arrays:
    """All entries are replaced; of ``self`` only the shape and the type count."""
    return expand_arrays(call, call.value("src"))


def _concatenated(site: Site) -> None:
    axis, start, stop = _range(site.call)
    head = _kept(site, axis, 0, start)
    tail = _kept(site, axis, stop, site.operand("self").shape[axis])
    pieces = [p for p in (head, site.node("src"), tail) if p is not None]
    site.result = site.emit(torch.ops.aten.cat.default, pieces, axis) if len(pieces) > 1 else pieces[0]


def _kept(site: Site, axis: int, start: int, stop: int) -> torch.fx.Node | None:
    """The part of ``self`` that is not written, if any of it is left."""
    dense = site.layout("self").at(axis)
    inside = (dense >= start) & (dense < stop)
    others = tuple(a for a in range(dense.ndim) if a != axis)
    at = np.flatnonzero(inside.any(others))
    if not inside.take(at, axis).all():
        raise RewriteError("rows keep different counts in a range that is replaced")
    return site.take(site.node("self"), axis, along(at, dense.ndim, axis)) if len(at) else None


def _range(call: Call) -> tuple[int, int, int]:
    axis = call.axis()
    start, stop, _ = slice(call.get("start"), call.get("end")).indices(call.value("self").shape[axis])
    return axis, start, stop


@rule("aten.slice_scatter.default", rewrite=_concatenated)
def slice_scatter(call: Call) -> Arrays:
    """A range of one axis is replaced."""
    x, source = call.value("self"), call.value("src")
    axis, start, stop = _range(call)
    if call.get("step", 1) != 1 or (x.symbolic[axis] and (x.on(axis) or source.on(axis))):
        call.pin((*x.arrays, *source.arrays), "a strided or symbolic range is replaced")
        return ()
    head, tail = _piece(x, axis, 0, start), _piece(x, axis, stop, x.shape[axis])
    for piece in (head, tail):
        if piece.shape[axis] == 1:
            alone = (p for p, a in zip(piece.arrays, x.arrays, strict=True) if axis in a.axes)
            call.pin(alone, "one index of this axis stays beside what is replaced")
    pieces = [p for p in (head, source, tail) if p.shape[axis]]
    along = joined(call, pieces, axis)
    axes = tuple(range(x.rank))
    others = [(n, flat(_off(v, axis), axis), axes) for n, v in (("self", x), ("src", source))]
    shape = [1 if a == axis else n for a, n in enumerate(call.out.shape)]
    return (*meet(call, shape, others, both), *along)


@rule("aten.select_scatter.default")
def select_scatter(call: Call) -> Arrays:
    """One index of one axis is replaced; the others meet."""
    x, source = call.value("self"), call.value("src")
    axis = call.axis()
    call.pin(x.on(axis), "one index of this axis is replaced")
    axes = tuple(range(x.rank))
    rest = tuple(a for a in axes if a != axis)
    shape = [1 if a == axis else n for a, n in enumerate(call.out.shape)]
    return meet(call, shape, [("self", flat(_off(x, axis), axis), axes), ("src", source, rest)], both)


def _piece(value: Value, axis: int, start: int, stop: int) -> Value:
    cut = rearrange(
        value.arrays, lambda ids: ids if ids.shape[axis] == 1 else ids.take(range(start, stop), axis)
    )
    shape = tuple(stop - start if a == axis else n for a, n in enumerate(value.shape))
    return replace(value, shape=shape, arrays=cut)


def _off(value: Value, axis: int) -> Value:
    return replace(value, arrays=tuple(a for a in value.arrays if axis not in a.axes))
