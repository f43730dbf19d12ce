"""Stacked expert weights: every token meets the matrix of the expert that it was routed to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ecospa_fx import ops
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import contract
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _aligned(site: Site) -> None:
    """The fused kernel takes whole multiples of 16 bytes only."""
    x, w = site.node("self"), site.node("mat2")
    site.result = site.emit(ops.grouped_mm, x, w, site.args["offs"], site.args.get("out_dtype"))


@rule("aten._grouped_mm.default", rewrite=_aligned)
@rule("transformers.grouped_mm_fallback.default")
def grouped_mm(call: Call) -> Arrays:
    """``out[t] = x[t] @ w[expert(t)]``: the labels of the first expert stand for those of each."""
    names = list(call.args)
    x, w = call.args[names[0]], call.args[names[1]]
    offsets = call.get("offs")
    if x.rank != 2 or w.rank != 3 or offsets is None or call.get("bias") is not None:
        return call.refuse("a grouped product of another form")
    one = call.routed(w, "offs")
    call.pin(one.on(0), "the router picks experts by number")
    call.pin(x.on(0), "rows are routed to experts")
    matrix = replace(one, shape=(1, *w.shape[1:]), arrays=tuple(a for a in one.arrays if 0 not in a.axes))
    arrays = contract(call, "ti,eio->to", (names[0], x), (names[1], matrix))
    if call.routed_by:
        call.joins.clear()  # what the experts keep lines up expert by expert
    return arrays
