"""Norms whose statistics belong to a channel or a group of channels, and weight norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import pick
from ecospa_fx.rules.meet import Operand, meet
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _affine(call: Call, arrays: Arrays, others: tuple[str, ...]) -> Arrays:
    """Channels (axis 1) meet one number per channel of each other argument.

    A dead channel is shifted by its mean, so it vanishes only if its scale and shift do.
    """
    x = call.value("input")
    axes = tuple(range(x.rank))
    operands: list[Operand] = [("input", Value(x.shape, x.symbolic, arrays, x.nature), axes)]
    operands += [(n, call.value(n), (1,)) for n in others if isinstance(call.get(n), Value)]
    present = [n for n, _, _ in operands]

    def zero(flags: object) -> bool:
        known = dict(zip(present, flags, strict=True))  # type: ignore[call-overload]
        return bool(known.get("weight", False) and known.get("bias", True))

    return meet(call, x.shape, operands, zero)


@rule("aten.batch_norm.default")
def batch_norm(call: Call) -> Arrays:
    """Every channel is scaled and shifted by itself; statistics of the batch need all other axes."""
    x = call.value("input")
    if not call.get("training"):
        return _affine(call, x.arrays, ("running_mean", "running_var", "weight", "bias"))
    if isinstance(call.get("running_mean"), Value):
        return call.refuse("running statistics are kept for this axis; call the model in evaluation mode")
    axes = [0, *range(2, x.rank)]
    return _affine(call, spared(call, x, axes, "normalised along this axis"), ("weight", "bias"))


@rule("aten._native_batch_norm_legit_no_training.default")
def batch_norm_in_evaluation(call: Call) -> list[Arrays]:
    """The same in functional form; the statistics that it also returns are empty."""
    x = call.value("input")
    return [_affine(call, x.arrays, ("running_mean", "running_var", "weight", "bias")), (), ()]


@rule("aten._native_batch_norm_legit_functional.default")
def batch_norm_in_training(call: Call) -> list[Arrays]:
    """With the batch's statistics, which it also returns, and the running ones after this batch."""
    x = call.value("input")
    axes = [0, *range(2, x.rank)] if call.args["training"] else []
    out = _affine(
        call,
        spared(call, x, axes, "normalised along this axis"),
        ("running_mean", "running_var", "weight", "bias"),
    )
    channels = tuple(LabelArray(a.ids.ravel(), zero=False) for a in out if a.axes == {1})
    return [out, *(channels if o.shape == x.shape[1:2] else () for o in call.outputs[1:])]


def _fewer_groups(site: Site) -> None:
    """As many groups as are left whole."""
    channels, groups = site.operand("input").shape[1], site.args["num_groups"]
    site.set("num_groups", site.layout("input").shape[1] * groups // channels)


@rule("aten.group_norm.default", rewrite=_fewer_groups)
def group_norm(call: Call) -> Arrays:
    """The channels of a group go together, and the group with them (Wu and He, 2018)."""
    x, groups = call.value("input"), call.args["num_groups"]
    arrays = spared(call, x, range(2, x.rank), "normalised along this axis")
    for array in arrays:
        if 1 in array.axes:
            rows = array.ids.reshape(array.ids.shape[0], groups, -1, *array.ids.shape[2:])
            call.space.union(rows, rows[:, :, :1])
    return _affine(call, arrays, ("weight", "bias"))


@rule("aten.instance_norm.default")
def instance_norm(call: Call) -> Arrays:
    """Every channel of every instance by itself (Ulyanov et al., 2016)."""
    x = call.value("input")
    if not call.get("use_input_stats"):
        return _affine(call, x.arrays, ("running_mean", "running_var", "weight", "bias"))
    if isinstance(call.get("running_mean"), Value):
        return call.refuse("running statistics are kept for this axis")
    return _affine(call, spared(call, x, range(2, x.rank), "normalised along this axis"), ("weight", "bias"))


@rule("aten.channel_shuffle.default")
def channel_shuffle(call: Call) -> Arrays:
    """Channels of all groups in turn."""
    channels = call.value("self").shape[1]
    return pick(call, 1, np.arange(channels).reshape(call.args["groups"], -1).T.ravel())


@rule("aten._weight_norm.default")
def weight_norm(call: Call) -> Arrays:
    """``g * v / |v|``, one norm per index of an axis (Salimans and Kingma, 2016)."""
    v, g = call.value("v"), call.value("g")
    axis = int(call.get("dim", 0)) % v.rank
    call.pin((*v.on(axis), *g.on(axis)), "its norm would become zero")
    axes = tuple(range(v.rank))
    free = Value(v.shape, v.symbolic, tuple(a for a in v.arrays if axis not in a.axes), v.nature)
    plain = Value(g.shape, g.symbolic, tuple(a for a in g.arrays if axis not in a.axes), g.nature)
    return meet(call, v.shape, [("v", free, axes), ("g", plain, axes)], lambda f: f[0])
