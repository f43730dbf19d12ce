"""Complex numbers: pairs of real ones on the last axis."""

from __future__ import annotations

import numpy as np

from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.pointwise import pointwise
from ecospa_fx.rules.registry import rule


@rule("aten.view_as_complex.default")
def view_as_complex(call: Call) -> Arrays:
    """Real and imaginary part go together."""
    x = call.value("self")
    last = x.rank - 1
    call.pin((a for a in x.arrays if a.axes == {last}), "one part of every complex number")
    for array in x.on(last):
        call.space.union(array.ids, array.ids[..., :1])
    return rearrange((a for a in x.arrays if a.axes != {last}), lambda ids: ids[..., 0])


@rule("aten.view_as_real.default")
def view_as_real(call: Call) -> Arrays:
    """Real and imaginary part on a new axis."""
    return rearrange(call.value("self").arrays, lambda ids: np.expand_dims(ids, -1))


@rule("aten.complex.default")
def complex_(call: Call) -> Arrays:
    """Zero where both parts are."""
    return pointwise(call, ("real", "imag"), all)
