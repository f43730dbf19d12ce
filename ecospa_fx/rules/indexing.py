"""Lookups and writes by number: axes that are indexed stay, the others pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ecospa_fx.labels import LabelArray, Nature, Value
from ecospa_fx.rules.call import Arrays, Call, arrays_of
from ecospa_fx.rules.meet import ZeroRule, both, first, meet
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

_BY_NUMBER = "looked up or written by number"


@dataclass(frozen=True)
class _Region:
    """What ``x[indices]`` selects.

    Attributes:
        indexed: axes of ``x`` that are indexed.
        place: where the axes of the indices stand in the region.
        width: how many those are.
        rest: the other axes of ``x``, in order.
    """

    indexed: tuple[int, ...]
    place: int
    width: int
    rest: tuple[int, ...]

    @property
    def axes(self) -> list[int | None]:
        """The axis of ``x`` behind each axis of the region; None for those of the indices."""
        return [*self.rest[: self.place], *[None] * self.width, *self.rest[self.place :]]


def _region(call: Call, rank: int | None) -> _Region | None:
    """The region that the tensors in ``indices`` select, or None where it is not clear.

    Args:
        call: the call; a mask stands for as many axes as it has, and gives one.
        rank: rank of the region where it is known, which tells masks from integers.
    """
    x = call.value("self")
    found = [(axis, v) for axis, v in enumerate(call.args["indices"]) if isinstance(v, Value)]
    if not found:
        return None
    start = found[0][0]
    axes, width = [a for a, _ in found], max(v.rank for _, v in found)
    if rank is not None and rank != x.rank - len(axes) + width:
        if len(found) > 1 or rank != x.rank - width + 1:
            return None
        axes, width = list(range(start, start + width)), 1
    together = axes == list(range(start, start + len(axes)))
    rest = tuple(a for a in range(x.rank) if a not in axes)
    return _Region(tuple(axes), start if together else 0, width, rest)


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: Call) -> Arrays:
    """``x[i, :, j]``: the axes without an index pass."""
    x = call.value("self")
    region = _region(call, call.out.rank)
    if region is None:
        return call.refuse(_BY_NUMBER)
    call.pin(arrays_of(call.args["indices"]), "used as indices")
    if region.indexed == (0,):
        x = call.routed(x, "indices")

    def moved(array: LabelArray) -> LabelArray:
        shape = [1 if a is None else array.ids.shape[a] for a in region.axes]
        return LabelArray(array.ids.reshape(shape), array.zero)

    arrays = tuple(moved(a) for a in spared(call, x, region.indexed, _BY_NUMBER))
    _note_matrices(call, x, arrays)
    return arrays


def _note_matrices(call: Call, x: Value, arrays: Arrays) -> None:
    """Parameters of which whole matrices are picked (experts) multiply like parameters still."""
    if x.nature == Nature.WEIGHT and len(frozenset().union(*(a.axes for a in arrays))) > 1:
        call.outputs = tuple(replace(o, nature=Nature.LOOKUP) for o in call.outputs)


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(call: Call) -> Arrays:
    """``x[i, :, j] = values``: axes without an index meet those of the values."""
    x, values = call.value("self"), call.value("values")
    region = None if any(_may_be_mask(call, v) for v in call.args["indices"]) else _region(call, None)
    if region is None or values.rank > x.rank - len(region.indexed) + region.width:
        return call.refuse(_BY_NUMBER)
    call.pin(arrays_of(call.args["indices"]), "used as indices")
    places = region.axes[len(region.axes) - values.rank :]
    extra = iter(range(x.rank, x.rank + region.width))
    written = tuple(next(extra) if a is None else a for a in places)
    by_index = [i for i, a in enumerate(places) if a is None]
    operands = [
        ("self", _bare(call, x, region.indexed), tuple(range(x.rank))),
        ("values", _bare(call, values, by_index), written),
    ]
    sizes = [1] * region.width
    for i in by_index:
        sizes[written[i] - x.rank] = values.shape[i]
    arrays = meet(call, [*x.shape, *sizes], operands, both)
    return tuple(LabelArray(a.ids.reshape(a.ids.shape[: x.rank]), a.zero) for a in arrays)


def _may_be_mask(call: Call, value: object) -> bool:
    """A mask of several axes; one of a single axis selects like integers do."""
    return (
        isinstance(value, Value) and value.rank > 1 and value.shape == call.value("self").shape[: value.rank]
    )


def _bare(call: Call, value: Value, axes: Iterable[int]) -> Value:
    return replace(value, arrays=spared(call, value, axes, _BY_NUMBER))


def _along(call: Call, names: tuple[str, ...], zero: ZeroRule) -> Arrays:
    """Operands that agree entry by entry, but for the axis ``dim``; the result has its labels."""
    axis = call.axis()
    rank = call.out.rank
    if rank == 0:
        return call.refuse(_BY_NUMBER)
    present = [(n, call.value(n)) for n in names if isinstance(call.get(n), Value)]
    odd = {
        a for _, v in present for a in range(rank) if a != axis and v.shape[a] not in (1, call.out.shape[a])
    }
    operands = [(n, _bare(call, v, {axis, *odd}), tuple(range(rank))) for n, v in present]
    return meet(call, [1 if a == axis else n for a, n in enumerate(call.out.shape)], operands, zero)


@rule("aten.gather.default", "aten.take_along_dim.default")
def gather(call: Call) -> Arrays:
    """One entry for each entry of ``index`` along one axis; on the others they meet."""
    return _along(call, ("self", "index" if "index" in call.args else "indices"), first)


@rule("aten.scatter.src", "aten.scatter_add.default", "aten.scatter_reduce.two")
def scatter(call: Call) -> Arrays:
    """Entries of ``src`` go to ``index`` along one axis; on the others all three meet."""
    return _along(call, ("self", "src", "index"), lambda f: f[0] and f[1])


@rule("aten.scatter.value", "aten.scatter.value_reduce")
def scatter_value(call: Call) -> Arrays:
    """One number goes to ``index`` along one axis."""
    return _along(call, ("self", "index"), first if call.get("value") == 0 else lambda f: False)


@rule("aten.masked_scatter.default")
def masked_scatter(call: Call) -> Arrays:
    """Entries of ``source`` in their order, where a mask holds.

    A mask of size 1 on the last axis takes whole rows, so that axis passes if ``source`` has it too.
    """
    x, mask, source = (call.value(n) for n in ("self", "mask", "source"))
    last = x.rank - 1
    rows = source.rank and x.rank and source.shape[-1] == x.shape[-1] and not x.symbolic[-1]
    if not rows or (mask.rank and (mask.shape[-1] != 1 or mask.symbolic[-1])) or call.out.rank != x.rank:
        return call.refuse("taken by a mask that may tell features apart")
    call.pin(mask.arrays, "used as a mask of places")
    operands = [
        ("self", _bare(call, x, range(last)), tuple(range(x.rank))),
        ("source", _bare(call, source, range(source.rank - 1)), (*range(x.rank, last + source.rank), last)),
    ]
    arrays = meet(call, [*([1] * last), x.shape[last], *([1] * (source.rank - 1))], operands, both)
    return tuple(LabelArray(a.ids.reshape(a.ids.shape[: x.rank]), a.zero) for a in arrays)


@rule("aten.index_select.default")
def index_select(call: Call) -> Arrays:
    """Slices of one axis by number."""
    call.pin(call.value("index").arrays, "used as indices")
    x = call.routed(call.value("self"), "index") if call.axis() == 0 else call.value("self")
    arrays = spared(call, x, [call.axis()], _BY_NUMBER)
    _note_matrices(call, x, arrays)
    return arrays


@rule("aten.index_copy.default", "aten.index_add.default", "aten.index_reduce.default")
def index_copy(call: Call) -> Arrays:
    """Slices of ``source`` go to places of one axis by number."""
    call.pin(call.value("index").arrays, "used as indices")
    return _along(call, ("self", "source"), both)


@rule("aten.segment_reduce.default")
def segment_reduce(call: Call) -> Arrays:
    """Runs of one axis are reduced; empty ones give the initial value."""
    zero = call.args["reduce"] == "sum" and not call.get("initial")
    return spared(call, call.value("data"), [call.axis("axis", "data")], _BY_NUMBER, keep_zero=zero)


@rule("aten.repeat_interleave.self_Tensor")
def repeat_by_number(call: Call) -> Arrays:
    """Every slice of one axis as often as a tensor says."""
    x = call.value("self")
    call.pin(call.value("repeats").arrays, "used as indices")
    return spared(call, x, range(x.rank) if call.get("dim") is None else [call.axis()], _BY_NUMBER)


@rule("aten.index_fill.int_Scalar")
def index_fill(call: Call) -> Arrays:
    """One number goes to slices of one axis."""
    call.pin(call.value("index").arrays, "used as indices")
    arrays = spared(call, call.value("self"), [call.axis()], _BY_NUMBER)
    return tuple(LabelArray(a.ids, a.zero and call.args["value"] == 0) for a in arrays)


@rule("aten.tril.default", "aten.triu.default")
def triangle(call: Call) -> Arrays:
    """Entries on one side of the diagonal of the last two axes."""
    x = call.value("self")
    return spared(call, x, (x.rank - 2, x.rank - 1), "cut along its diagonal")


@rule("aten.rot90.default")
def rot90(call: Call) -> Arrays:
    """Two axes turn; the others pass."""
    x = call.value("self")
    return spared(call, x, [d % x.rank for d in call.get("dims", [0, 1])], "turned along this axis")


@rule("aten.trapezoid.dx")
def trapezoid(call: Call) -> Arrays:
    """A sum along one axis in which both ends count half."""
    x, axis = call.value("y"), call.axis(of="y", default=-1)
    arrays = spared(call, x, [axis], "neighbours along this axis meet")
    return tuple(LabelArray(a.ids.squeeze(axis), a.zero) for a in arrays)


@rule("aten.gradient.scalarint")
def gradient(call: Call) -> list[Arrays]:
    """Central differences along one axis or along each."""
    x, dim = call.value("self"), call.get("dim")
    axes = range(x.rank) if dim is None else [dim % x.rank]
    return [spared(call, x, axes, "neighbours along this axis meet")] * len(call.outputs)


@rule("aten.diff.default")
def diff(call: Call) -> Arrays:
    """Differences of neighbours along one axis."""
    return spared(call, call.value("self"), [call.axis(default=-1)], "neighbours along this axis meet")
