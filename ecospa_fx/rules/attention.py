"""Scaled dot-product attention: three contractions, a softmax, and a scale that must not move."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ecospa_fx.labels import Nature, Tag, Value
from ecospa_fx.rules.call import Arrays, Call, unzeroed
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.meet import contract, meet, neither, operand
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _pin_scale(site: Site) -> None:
    """The default scale is 1 / sqrt(head dim): keep the dense one."""
    if site.args.get("scale") is None:
        site.set("scale", site.call.value("query").shape[-1] ** -0.5)


@rule("aten.scaled_dot_product_attention.default", rewrite=_pin_scale)
def sdpa(call: Call) -> Arrays:
    """``softmax(q k^T + mask) v``; with ``enable_gqa`` every key head serves a group of query heads."""
    q, k, v = (call.value(n) for n in ("query", "key", "value"))
    call.tag([*q.on(q.rank - 1), *k.on(k.rank - 1)], Tag.DOT)  # learned queries are weights, and queries
    call.tag(v.on(v.rank - 1), Tag.VALUE)
    if call.get("enable_gqa"):
        k, v = _grouped(k, q.shape[-3]), _grouped(v, q.shape[-3])
        names = ("", "")
    else:
        names = ("key", "value")
    scores = contract(call, "...ld,...sd->...ls", ("query", q), (names[0], k))
    shape = (*call.out.shape[:-1], k.shape[-2])
    score = Value(shape, (False,) * len(shape), scores, Nature.ACTIVATION)
    score = replace(score, arrays=_masked(call, score))
    last = score.on(score.rank - 1)
    call.pin(last, "softmax runs along this axis")
    weights = unzeroed(a for a in score.arrays if a not in last)
    return contract(call, "...ls,...sd->...ld", ("", replace(score, arrays=weights)), (names[1], v))


def _masked(call: Call, score: Value) -> Arrays:
    mask = call.get("attn_mask")
    if not isinstance(mask, Value):
        return score.arrays
    operands = [operand("", score, score.rank), operand("attn_mask", mask, score.rank)]
    return meet(call, score.shape, operands, neither)


def _grouped(value: Value, heads: int) -> Value:
    """Repeat the heads (axis -3) for their groups of query heads."""
    times = heads // value.shape[-3]
    arrays = rearrange(value.arrays, lambda ids: ids if ids.shape[-3] == 1 else ids.repeat(times, -3))
    shape = (*value.shape[:-3], heads, *value.shape[-2:])
    return replace(value, shape=shape, arrays=arrays)


@rule(
    "aten.softmax.int",
    "aten._softmax.default",
    "aten.log_softmax.int",
    "aten._log_softmax.default",
    "aten._safe_softmax.default",
)
def softmax(call: Call) -> Arrays:
    """Every entry along the axis depends on all others."""
    axis = call.axis()
    x = call.value("self")
    call.pin(x.on(axis), "softmax runs along this axis")
    return unzeroed(a for a in x.arrays if axis not in a.axes)
