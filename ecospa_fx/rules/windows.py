"""Operators over windows of positions: pools, resampling, padding, patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from ecospa_fx.labels import Ids, LabelArray, Tag, Value
from ecospa_fx.rules.call import Arrays, Call, unzeroed
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.meet import first, meet
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def spared(call: Call, value: Value, axes: Iterable[int], text: str, keep_zero: bool = True) -> Arrays:
    """Arrays of ``value`` that do not touch ``axes``; the others are frozen."""
    touched = frozenset(axes)
    call.pin((a for a in value.arrays if a.axes & touched), text)
    return tuple(LabelArray(a.ids, a.zero and keep_zero) for a in value.arrays if not a.axes & touched)


def _positions(call: Call, count: int, keep_zero: bool = True) -> Arrays:
    x = call.value("self" if "self" in call.args else "input")
    return spared(call, x, range(x.rank - count, x.rank), "mixed by a window of positions", keep_zero)


def _spatial(target: str) -> int:
    """Number of spatial axes, from the name of the operator."""
    return int(next(c for c in target if c.isdigit()))


@rule(
    "aten.avg_pool1d.default",
    "aten.avg_pool2d.default",
    "aten.avg_pool3d.default",
    "aten.adaptive_avg_pool1d.default",
    "aten.adaptive_avg_pool2d.default",
    "aten.adaptive_avg_pool3d.default",
    "aten.max_pool1d.default",
    "aten.max_pool2d.default",
    "aten.max_pool3d.default",
    "aten.upsample_nearest1d.vec",
    "aten.upsample_nearest2d.vec",
    "aten.upsample_nearest3d.vec",
    "aten._upsample_nearest_exact2d.vec",
    "aten.upsample_linear1d.vec",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_bicubic2d.vec",
    "aten.upsample_trilinear3d.vec",
    "aten._upsample_bilinear2d_aa.vec",
    "aten._upsample_bicubic2d_aa.vec",
)
def window(call: Call) -> Arrays:
    """Positions are mixed, channel by channel."""
    return _positions(call, _spatial(call.target))


@rule(
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
    "aten.adaptive_max_pool1d.default",
    "aten.adaptive_max_pool2d.default",
    "aten.adaptive_max_pool3d.default",
    "aten.max_pool1d_with_indices.default",
)
def window_with_places(call: Call) -> list[Arrays]:
    """Maxima, and where they lie."""
    arrays = _positions(call, _spatial(call.target))
    return [arrays, unzeroed(arrays)]


@rule("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def unpool(call: Call) -> Arrays:
    """Maxima go back to where they lay, channel by channel."""
    count, operands = _spatial(call.target), []
    for name in ("self", "indices"):
        x = call.value(name)
        free = spared(call, x, range(x.rank - count, x.rank), "mixed by a window of positions")
        operands.append((name, replace(x, arrays=free), tuple(range(x.rank))))
    lead = call.out.shape[: call.out.rank - count]
    return meet(call, [*lead, *[1] * count], operands, first)


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(call: Call) -> Arrays:
    """Positions are looked up in a grid, channel by channel."""
    x, grid = call.value("input"), call.value("grid")
    call.pin(grid.arrays, "used as coordinates")
    return spared(call, x, range(2, x.rank), "looked up by coordinates")


@rule("aten.pad.default", "aten.constant_pad_nd.default")
def pad(call: Call) -> Arrays:
    """What is added to an axis stays; what was there passes, unless it is repeated or cut."""
    x, amounts = call.value("self"), call.args["pad"]
    padded = {x.rank - 1 - i // 2 for i, n in enumerate(amounts) if n != 0}
    added = call.get("mode", "constant") == "constant"
    if not added or min(amounts) < 0 or any(x.symbolic[a] for a in padded):
        keeps_zero = not added or not call.get("value")
        return spared(call, x, padded, "padded along this axis", keeps_zero)
    wide = tuple(LabelArray(_extended(call, a.ids), a.zero and not call.get("value")) for a in x.arrays)
    for coarse, fine in permutations(wide, 2):
        if coarse.axes < fine.axes:
            call.space.imply(coarse.ids, fine.ids)  # what is added keeps the head that it is added to
    return wide


def _extended(call: Call, ids: Ids) -> Ids:
    """Labels with new ones around them, which stay."""
    amounts = call.args["pad"]
    for i in range(0, len(amounts), 2):
        axis = ids.ndim - 1 - i // 2
        if ids.shape[axis] > 1:
            around = [_added(call, ids, axis, n) for n in amounts[i : i + 2]]
            ids = np.concatenate([around[0], ids, around[1]], axis)
    return ids


def _added(call: Call, ids: Ids, axis: int, count: int) -> Ids:
    fresh = call.space.fresh([count if a == axis else n for a, n in enumerate(ids.shape)])
    call.pin([LabelArray(fresh, zero=False)], "added by padding")
    return fresh


@rule("aten.unfold.default")
def unfold(call: Call) -> Arrays:
    """Windows of one axis, in a new last axis."""
    x = call.value("self")
    arrays = spared(call, x, [call.axis("dimension")], "cut into windows")
    return rearrange(arrays, lambda ids: np.expand_dims(ids, -1))


@rule("aten.im2col.default")
def im2col(call: Call) -> Arrays:
    """Patches: every channel becomes one row for each place of the window."""
    x = call.value("self")
    arrays = spared(call, x, (x.rank - 2, x.rank - 1), "cut into patches")
    axis, times = x.rank - 3, int(np.prod(call.args["kernel_size"]))

    def move(ids: Ids) -> Ids:
        rows = ids if ids.shape[axis] == 1 else ids.repeat(times, axis)
        return rows[..., 0]

    return rearrange(arrays, move)


@rule("aten.col2im.default")
def col2im(call: Call) -> Arrays:
    """Patches are added up again; the rows of a channel go together."""
    x = call.value("self")
    arrays = spared(call, x, [x.rank - 1], "put together from patches")
    call.pin((a for a in arrays if not a.zero), "summed over, but does not vanish where removed")
    together = _together(call, arrays, x.rank - 2, int(np.prod(call.args["kernel_size"])))
    return rearrange(together, lambda ids: np.expand_dims(ids, -1))


def _together(call: Call, arrays: Arrays, axis: int, count: int) -> Arrays:
    """Every ``count`` neighbours along ``axis`` become one."""

    def move(ids: Ids) -> Ids:
        if ids.shape[axis] == 1:
            return ids
        rows: Ids = ids.reshape(*ids.shape[:axis], -1, count, *ids.shape[axis + 1 :])
        call.space.union(rows, rows.take([0], axis + 1))
        return np.asarray(rows.take(0, axis + 1))

    return rearrange(arrays, move)


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(call: Call) -> Arrays:
    """Groups of channels become blocks of pixels."""
    x = call.value("self")
    arrays = spared(call, x, (x.rank - 2, x.rank - 1), "laid out as pixels")
    return _together(call, arrays, x.rank - 3, call.args["upscale_factor"] ** 2)


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(call: Call) -> Arrays:
    """Blocks of pixels become channels."""
    x = call.value("self")
    arrays = spared(call, x, (x.rank - 2, x.rank - 1), "laid out as channels")
    axis, times = x.rank - 3, call.args["downscale_factor"] ** 2
    return rearrange(arrays, lambda ids: ids if ids.shape[axis] == 1 else ids.repeat(times, axis))


def _same_call(site: Site) -> None:
    """Halves shrink alike, so the same call finds them."""


@rule("aten.glu.default", rewrite=_same_call)
def glu(call: Call) -> Arrays:
    """The first half of an axis times the sigmoid of the second; index by index they go together."""
    x = call.value("self")
    axis = call.axis(default=-1)
    call.tag(x.arrays, Tag.NONLINEAR)

    def move(ids: Ids) -> Ids:
        if ids.shape[axis] == 1:
            return ids
        first, second = np.split(ids, 2, axis)
        call.space.union(first, second)
        return first

    return rearrange(x.arrays, move)
