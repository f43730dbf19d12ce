"""Norms of layers: exact over a shrunk axis, for their statistics are those of the dense width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ecospa_fx import ops
from ecospa_fx.labels import LabelArray, Tag, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import meet, operand
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _normalised(site: Site) -> tuple[int, int] | None:
    """Number of normalised axes and of their dense entries, if they shrink."""
    value = site.call.value("input")
    count = len(site.call.args["normalized_shape"])
    axes = range(value.rank - count, value.rank)
    if not any(site.layout("input").changed(a) for a in axes):
        return None
    return count, int(np.prod([value.shape[a] for a in axes]))


def _dense_layer_norm(site: Site) -> None:
    shrunk = _normalised(site)
    if shrunk:
        weight, bias = site.args.get("weight"), site.args.get("bias")
        eps = site.args.get("eps", 1e-5)
        site.result = site.emit(ops.layer_norm, site.node("input"), shrunk[0], weight, bias, eps, shrunk[1])


def _dense_rms_norm(site: Site) -> None:
    shrunk = _normalised(site)
    if shrunk:
        weight, eps = site.args.get("weight"), site.args.get("eps")
        site.result = site.emit(ops.rms_norm, site.node("input"), shrunk[0], weight, eps, shrunk[1])


@rule("aten.layer_norm.default", rewrite=_dense_layer_norm)
def layer_norm(call: Call) -> Arrays:
    """The mean shifts dead entries; only an affine weight makes them zero again."""
    return _norm(call, shift=True)


@rule("aten.rms_norm.default", rewrite=_dense_rms_norm)
def rms_norm(call: Call) -> Arrays:
    """Dead entries stay zero."""
    return _norm(call, shift=False)


def _norm(call: Call, shift: bool) -> Arrays:
    x = call.value("input")
    rank = x.rank
    normalised = set(range(rank - len(call.args["normalized_shape"]), rank))
    inside = [a for a in x.arrays if a.axes & normalised]
    call.pin((a for a in inside if not a.zero), "normalised, but not zero where removed")
    call.tag(inside, Tag.NORM)
    centred = tuple(LabelArray(a.ids, a.zero and not (shift and a in inside)) for a in x.arrays)
    operands = [operand("input", replace(x, arrays=centred), rank)]
    for name in ("weight", "bias"):
        other = call.get(name)
        if isinstance(other, Value):
            operands.append(operand(name, other, rank))
    present = [n for n, _, _ in operands]

    def zero(flags: Sequence[bool]) -> bool:
        known = dict(zip(present, flags, strict=True))
        return (known["input"] or known.get("weight", False)) and known.get("bias", True)

    # A shifted dead entry vanishes only if its weight and bias go too, so heads that share them must agree.
    return meet(call, x.shape, operands, zero, gather=not shift)
