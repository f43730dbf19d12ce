"""Convolutions: channels are a product, positions carry no labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ecospa_fx.arrays import along
from ecospa_fx.labels import LabelArray, Nature, Tag, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.contractions import plus
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.meet import contract, either, meet
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site

_GROUPED = "a grouped convolution"


@dataclass(frozen=True)
class _Operands:
    """Input and weight without labels on positions; ``spatial`` counts those, ``groups`` the groups."""

    x: Value
    w: Value
    spatial: int
    groups: int

    @property
    def channel(self) -> int:
        """The channel axis of the input."""
        return self.x.rank - self.spatial - 1


def _operands(call: Call) -> _Operands:
    x, w = call.value("input"), call.value("weight")
    spatial = w.rank - 2
    groups = int(call.get("groups", 1))
    apart = _apart(call, w) if groups > 1 else frozenset()
    mixed = [a for a in range(spatial) if a not in apart]
    free_x = spared(call, x, [x.rank - spatial + a for a in mixed], "mixed by a convolution's window")
    free_w = spared(call, w, range(2, w.rank), "a convolution's window")
    call.tag((*free_x, *free_w), Tag.CONV)
    sizes = [n if a in apart else 1 for a, n in enumerate(x.shape[x.rank - spatial :])]
    return _Operands(
        replace(x, shape=(*x.shape[: x.rank - spatial], *sizes), arrays=free_x),
        replace(w, shape=(*w.shape[:2], *(1,) * spatial), arrays=free_w),
        spatial,
        groups,
    )


def _apart(call: Call, w: Value) -> frozenset[int]:
    """Spatial axes of a depthwise convolution whose window holds one position, so that none are mixed."""
    spatial = w.rank - 2
    moves = [("stride", 1), ("padding", 0), ("output_padding", 0)]
    still = [[n == plain for n in _each(call.get(name, plain), spatial)] for name, plain in moves]
    narrow = [size == 1 == w.shape[1] for size in w.shape[2:]]
    return frozenset(a for a, kept in enumerate(zip(narrow, *still, strict=True)) if all(kept))


def _each(given: Any, count: int) -> list[Any]:
    """A setting for each spatial axis."""
    found = [*given] if isinstance(given, (list, tuple)) else [given]
    return found * count if len(found) == 1 else found


def _spec(spatial: int, weight: str) -> str:
    window, places = "xyz"[:spatial], "uvw"[:spatial]
    return f"...i{window},{weight}{places}->...o{window}"


def _as_many_groups_as_channels(site: Site) -> None:
    """A depthwise convolution keeps one group for each channel that is left."""
    groups, weight = int(site.call.get("groups", 1)), site.operand("weight")
    axis = _channel(site.call)
    if groups > 1 and site.operand("input").shape[axis] == groups and weight.shape[1] == 1:
        site.set("groups", site.layout("input").shape[axis])


def _channel(call: Call) -> int:
    return call.value("input").rank - call.value("weight").rank + 1


@rule(
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv3d.default",
    "aten.conv1d.padding",
    "aten.conv2d.padding",
    "aten.conv3d.padding",
    rewrite=_as_many_groups_as_channels,
)
def conv(call: Call) -> Arrays:
    """A window slides over positions; groups of channels have windows of their own."""
    ops = _operands(call)
    if ops.groups == 1:
        arrays = contract(call, _spec(ops.spatial, "oi"), ("input", ops.x), ("weight", ops.w))
    elif ops.w.nature == Nature.ACTIVATION:
        arrays = call.refuse(_GROUPED)
    elif ops.w.shape[1] == 1:
        arrays = _depthwise(call, ops)
    else:
        arrays = _grouped(call, ops)
    return plus(call, arrays, "bias", (ops.channel,))


def _depthwise(call: Call, ops: _Operands) -> Arrays:
    """Every channel has outputs of its own, which go with it."""
    times = ops.w.shape[0] // ops.groups
    channel = ops.channel
    repeated = rearrange(
        ops.x.arrays, lambda ids: ids if ids.shape[channel] == 1 else ids.repeat(times, channel)
    )
    for array in ops.w.on(0):
        rows = array.ids.reshape(ops.groups, times)
        call.space.union(rows, rows[:, :1])
    shape = [*call.out.shape[: channel + 1], *ops.x.shape[channel + 1 :]]
    wide = replace(ops.x, shape=tuple(shape), arrays=repeated)
    name = "input" if times == 1 else ""
    line = replace(ops.w, shape=(ops.w.shape[0],), arrays=rearrange(ops.w.on(0), lambda ids: ids.reshape(-1)))
    return meet(
        call, shape, [(name, wide, tuple(range(wide.rank))), ("", line, (channel,))], either, gather=False
    )


def _grouped(call: Call, ops: _Operands) -> Arrays:
    """Groups share the weight's input axis and keep equally many outputs, so all lose the same ones."""
    inner, outer = ops.w.shape[1], ops.w.shape[0] // ops.groups
    channel = ops.channel
    for array in ops.x.on(channel):
        if array.axes != {channel}:
            call.pin([array], _GROUPED)
            continue
        rows = array.ids.reshape(ops.groups, inner)
        for shared in ops.w.on(1):
            call.space.union(rows, shared.ids.reshape(1, inner))
        call.space.union(rows, rows[:1])
    if not ops.x.on(channel):
        call.pin(ops.w.on(1), "meets an activation without labels on this axis")
    call.tag(ops.w.on(1), Tag.CONTRACTED)
    result = tuple(a for a in ops.x.arrays if channel not in a.axes)
    for array in ops.w.on(0):
        rows = array.ids.reshape(ops.groups, outer)
        call.space.union(rows, rows[:1])
        result += (LabelArray(along(array.ids.reshape(-1), call.out.rank, channel), array.zero),)
    return result


@rule(
    "aten.conv_transpose1d.default",
    "aten.conv_transpose2d.input",
    "aten.conv_transpose3d.input",
    rewrite=_as_many_groups_as_channels,
)
def conv_transpose(call: Call) -> Arrays:
    """The adjoint: the weight's first axis is summed over."""
    ops = _operands(call)
    if ops.groups == 1:
        arrays = contract(call, _spec(ops.spatial, "io"), ("input", ops.x), ("weight", ops.w))
    elif ops.w.nature != Nature.ACTIVATION and ops.w.shape[:2] == (ops.groups, 1):
        arrays = _depthwise(call, ops)
    else:
        arrays = call.refuse(_GROUPED)
    return plus(call, arrays, "bias", (ops.channel,))
