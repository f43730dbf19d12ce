"""Norms whose statistics belong to a channel or a group of channels, and weight norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import Operand, meet
from ecospa_fx.rules.registry import rule

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
    """With running statistics every channel is scaled and shifted by itself."""
    x = call.value("input")
    if call.get("training"):
        call.pin(x.arrays, "statistics of the batch are kept for this axis; call the model in eval mode")
        call.pin((a for n in ("weight", "bias") for a in _arrays(call, n)), "scales a frozen axis")
        return ()
    return _affine(call, x.arrays, ("running_mean", "running_var", "weight", "bias"))


def _arrays(call: Call, name: str) -> Arrays:
    value = call.get(name)
    return value.arrays if isinstance(value, Value) else ()


def _one_group_each(site: Site) -> None:
    """As many groups as channels, before and after."""
    if site.operand("input").shape[1] == site.args["num_groups"]:
        site.set("num_groups", site.layout("input").shape[1])


@rule("aten.group_norm.default", rewrite=_one_group_each)
def group_norm(call: Call) -> Arrays:
    """Only where every channel is its own group can channels go."""
    x = call.value("input")
    alone = x.shape[1] == call.args["num_groups"]
    stays = [a for a in x.arrays if a.axes & set(range(2, x.rank)) or (1 in a.axes and not alone)]
    call.pin(stays, "normalised together with the rest of its group")
    if not alone:
        call.pin((*_arrays(call, "weight"), *_arrays(call, "bias")), "scales a frozen axis")
        return tuple(LabelArray(a.ids, False) for a in x.arrays if a not in stays)
    return _affine(call, tuple(a for a in x.arrays if a not in stays), ("weight", "bias"))


@rule("aten._weight_norm.default")
def weight_norm(call: Call) -> Arrays:
    """``g * v / |v|``, one norm per index of an axis (Salimans and Kingma, 2016); a dead norm would be zero."""
    v, g = call.value("v"), call.value("g")
    axis = int(call.get("dim", 0)) % v.rank
    call.pin((*v.on(axis), *g.on(axis)), "its norm would become zero")
    axes = tuple(range(v.rank))
    free = Value(v.shape, v.symbolic, tuple(a for a in v.arrays if axis not in a.axes), v.nature)
    plain = Value(g.shape, g.symbolic, tuple(a for a in g.arrays if axis not in a.axes), g.nature)
    return meet(call, v.shape, [("v", free, axes), ("g", plain, axes)], lambda f: f[0])
