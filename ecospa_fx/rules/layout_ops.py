"""Operators that move entries: the same operator, run on the label arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx.labels import Ids, LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call, Pick
from ecospa_fx.rules.meet import first, meet, operand
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def rearrange(arrays: Iterable[LabelArray], move: Callable[[Ids], Ids]) -> Arrays:
    """Apply ``move`` to every label array."""
    return tuple(LabelArray(move(a.ids), a.zero) for a in arrays)


def pick(call: Call, axis: int, source: Ids, output: int = 0, name: str = "self") -> Arrays:
    """Entries ``source`` along ``axis``."""
    call.picks.append(Pick(name, axis, source, output=output))
    return rearrange(
        call.value(name).arrays, lambda ids: ids if ids.shape[axis] == 1 else np.take(ids, source, axis)
    )


def drop(call: Call, axis: int, at: int, output: int = 0, name: str = "self") -> Arrays:
    """The one slice at index ``at``; the axis goes."""
    arrays = call.value(name).arrays
    call.picks.append(Pick(name, axis, np.array([at]), drop=True, output=output))
    alone = [LabelArray(np.take(a.ids, [at], axis)) for a in arrays if a.axes == {axis}]
    call.pin(alone, "one index of this axis is selected by number")
    rest = (a for a in arrays if a.axes != {axis})
    return rearrange(rest, lambda ids: np.take(ids, at if ids.shape[axis] > 1 else 0, axis))


@rule("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(call: Call) -> Arrays:
    """Two axes change places."""
    a = call.axis("dim0" if "dim0" in call.args else "axis0")
    b = call.axis("dim1" if "dim1" in call.args else "axis1")
    return rearrange(call.value("self").arrays, lambda ids: ids.swapaxes(a, b))


@rule("aten.permute.default")
def permute(call: Call) -> Arrays:
    """Axes in a new order."""
    rank = call.value("self").rank
    order = [d % rank for d in call.args["dims"]]
    return rearrange(call.value("self").arrays, lambda ids: ids.transpose(order))


@rule("aten.movedim.int", "aten.moveaxis.int", "aten.movedim.intlist", "aten.moveaxis.intlist")
def movedim(call: Call) -> Arrays:
    """Axes move."""
    return rearrange(
        call.value("self").arrays, lambda ids: np.moveaxis(ids, call.args["source"], call.args["destination"])
    )


@rule("aten.t.default", "aten.numpy_T.default", "aten.mT.default", "aten.adjoint.default")
def reverse_axes(call: Call) -> Arrays:
    """A matrix is transposed; ``.T`` reverses all axes."""
    if "numpy_T" in call.target:
        return rearrange(call.value("self").arrays, np.transpose)
    return rearrange(call.value("self").arrays, lambda ids: ids.swapaxes(-1, -2) if ids.ndim > 1 else ids)


@rule("aten.unsqueeze.default")
def unsqueeze(call: Call) -> Arrays:
    """A new axis of size 1."""
    axis = call.args["dim"] % (call.value("self").rank + 1)
    return rearrange(call.value("self").arrays, lambda ids: np.expand_dims(ids, axis))


def _squeezed(call: Call) -> tuple[int, ...]:
    x = call.value("self")
    dims = call.get("dim", list(range(x.rank)))
    dims = {d % x.rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])}
    return tuple(sorted(d for d in dims if x.shape[d] == 1))


def _same_axes_go(site: Site) -> None:
    """An axis of which one index survives is no axis of size 1."""
    site.result = site.emit(torch.ops.aten.squeeze.dims, site.node("self"), list(_squeezed(site.call)))


@rule("aten.squeeze.dim", "aten.squeeze.default", "aten.squeeze.dims", rewrite=_same_axes_go)
def squeeze(call: Call) -> Arrays:
    """Axes of size 1 go."""
    x, gone = call.value("self"), _squeezed(call)
    return rearrange(x.arrays, lambda ids: ids.squeeze(gone))


def _new_sizes(site: Site) -> None:
    """Static sizes of axes that changed; symbolic ones scale."""
    layout, value = site.layout_out(), site.call.outputs[0]
    sizes = list(site.args["size"] if "size" in site.args else site.args["shape"])
    for axis in range(value.rank):
        if layout.changed(axis) and not (isinstance(sizes[axis], int) and sizes[axis] == -1):
            sizes[axis] = site.scaled(sizes[axis], layout.shape[axis], layout.dense[axis])
    site.set("size" if "size" in site.args else "shape", sizes)


@rule("aten.expand.default", "aten.broadcast_to.default", rewrite=_new_sizes)
def expand(call: Call) -> Arrays:
    """Axes of size 1 repeat. Every copy may go by itself, so each gets a slot of its own."""
    return expand_arrays(call, call.value("self"))


def expand_arrays(call: Call, x: Value) -> Arrays:
    """Label arrays of ``x`` once it is expanded to the call's output."""
    new = call.out.rank - x.rank
    arrays = rearrange(x.arrays, lambda ids: ids.reshape((1,) * new + ids.shape))
    return (*arrays, *(s for axis in range(call.out.rank) for s in _copies(call, x, axis, new)))


def _copies(call: Call, x: Value, axis: int, new: int) -> Arrays:
    out = call.out
    repeated = out.shape[axis] > 1 and (axis < new or x.shape[axis - new] == 1)
    if not repeated or out.symbolic[axis] or (not x.arrays and x.nature == 0):
        return ()
    return (call.slots([out.shape[axis] if a == axis else 1 for a in range(out.rank)], zero=False),)


@rule("aten.expand_as.default")
def like_other(call: Call) -> Arrays:
    """The sizes come from another tensor, which the result meets."""
    x, other, rank = call.value("self"), call.value("other"), call.out.rank
    operands = [operand("self", x, rank), operand("other", other, rank)]
    return meet(call, call.out.shape, operands, first)


@rule("aten.slice.Tensor", "aten.narrow.default")
def slice_(call: Call) -> Arrays:
    """A range of one axis."""
    axis = call.axis()
    size = call.value("self").shape[axis]
    start = call.get("start") or 0
    start = start % size if "length" in call.args and size else start
    end = start + call.args["length"] if "length" in call.args else call.get("end")
    if call.value("self").symbolic[axis] or call.out.symbolic[axis]:
        call.pin(call.value("self").on(axis), "a slice of a symbolic axis")
        return tuple(a for a in call.value("self").arrays if axis not in a.axes)
    return pick(call, axis, np.arange(size)[slice(start, end, call.get("step") or 1)])


@rule("aten.select.int")
def select(call: Call) -> Arrays:
    """One index of one axis."""
    axis = call.axis()
    return drop(call, axis, int(call.args["index"]) % max(call.value("self").shape[axis], 1))


@rule("aten.unbind.int")
def unbind(call: Call) -> list[Arrays]:
    """Every index of one axis, as outputs of their own."""
    axis = call.axis()
    return [drop(call, axis, i, output=i) for i in range(call.value("self").shape[axis])]


_SPLITS = {"hsplit": 1, "vsplit": 0, "dsplit": 2}


@rule(
    "aten.split_with_sizes.default",
    "aten.split.Tensor",
    "aten.chunk.default",
    "aten.split.sizes",
    "aten.tensor_split.sections",
    "aten.split_with_sizes_copy.default",
    "aten.tensor_split.indices",
    "aten.unsafe_chunk.default",
    "aten.unsafe_split.Tensor",
    "aten.unsafe_split_with_sizes.default",
    "aten.hsplit.int",
    "aten.hsplit.array",
    "aten.vsplit.int",
    "aten.vsplit.array",
    "aten.dsplit.int",
    "aten.dsplit.array",
)
def split(call: Call) -> list[Arrays]:
    """Consecutive ranges of one axis."""
    axis = next((a for word, a in _SPLITS.items() if word in call.target), call.axis())
    axis = min(axis, call.value("self").rank - 1)
    bounds = np.cumsum([0, *(o.shape[axis] for o in call.outputs)])
    return [pick(call, axis, np.arange(a, b), i) for i, (a, b) in enumerate(pairwise(bounds))]


@rule("aten.flip.default")
def flip(call: Call) -> Arrays:
    """One axis backwards."""
    return _permuted(call, [int(d) for d in call.args["dims"]], lambda n, _: np.arange(n)[::-1])


@rule("aten.roll.default")
def roll(call: Call) -> Arrays:
    """One axis rotated."""
    dims, shifts = list(call.get("dims") or []), list(call.args["shifts"])
    return _permuted(call, dims, lambda n, i: np.roll(np.arange(n), shifts[i]))


def _permuted(call: Call, dims: Sequence[int], source: Callable[[int, int], Ids]) -> Arrays:
    x = call.value("self")
    labelled = [(i, d % x.rank) for i, d in enumerate(dims) if x.on(d % x.rank)]
    if not labelled:
        return x.arrays if dims else call.refuse("the flattened tensor is permuted")
    if len(dims) > 1:
        return call.refuse("several axes are permuted at once")
    i, axis = labelled[0]
    return pick(call, axis, source(x.shape[axis], i))


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> Arrays:
    """Every index of one axis, several times; the same call serves the smaller axis."""
    x = call.value("self")
    if call.get("dim") is None or not isinstance(call.args["repeats"], int):
        return call.refuse("the flattened tensor is repeated")
    axis, times = call.axis(), call.args["repeats"]
    return rearrange(x.arrays, lambda ids: ids if ids.shape[axis] == 1 else np.repeat(ids, times, axis))


@rule("aten.repeat.default", "aten.tile.default")
def repeat(call: Call) -> Arrays:
    """Whole axes repeat; the same call serves the smaller axes."""
    x, out = call.value("self"), call.out
    new = out.rank - x.rank
    times = [1 if n == 1 else out.shape[new + a] // n for a, n in enumerate(x.shape)]

    def tile(ids: Ids) -> Ids:
        reps = [t if n > 1 else 1 for t, n in zip(times, ids.shape, strict=True)]
        return np.tile(ids, reps).reshape(
            (1,) * new + tuple(n * r for n, r in zip(ids.shape, reps, strict=True))
        )

    return rearrange(x.arrays, tile)


def reduced(array: LabelArray) -> LabelArray:
    """Size 1 along the axes on which the labels do not depend."""
    ids = array.ids
    for axis in array.axes:
        head = ids.take([0], axis)
        if (ids == head).all():
            ids = head
    return LabelArray(ids, array.zero)
