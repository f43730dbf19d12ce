"""Operators that work entry by entry."""

from __future__ import annotations

from ecospa_fx.labels import Nature, Tag, Value
from ecospa_fx.rules.call import Arrays, Call, unzeroed
from ecospa_fx.rules.meet import ZeroRule, both, either, first, meet, neither, operand
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.vocabulary import ACTIVATIONS, NOT_ZERO, SAME, SINGULAR, names


def pointwise(call: Call, names: tuple[str, ...], zero: ZeroRule) -> Arrays:
    """Operands called ``names`` broadcast against each other; missing or scalar ones do not matter."""
    rank = call.out.rank
    operands = [operand(n, call.args[n], rank) for n in names if isinstance(call.get(n), Value)]
    return meet(call, call.out.shape, operands, zero)


def through(call: Call, name: str = "self", zero: bool = True) -> Arrays:
    """Labels pass unchanged; ``zero`` says whether the function maps zero to zero."""
    return pointwise(call, (name,), first if zero else neither)


def _is_gating(call: Call) -> bool:
    operands = [call.get("self"), call.get("other")]
    return all(isinstance(v, Value) and v.nature == Nature.ACTIVATION and v.arrays for v in operands)


@rule(*names(SAME))
def same(call: Call) -> Arrays | list[Arrays]:
    """Linear in its input; a mask that comes with it does not vanish."""
    arrays = through(call, "self" if "self" in call.args else "input")
    if len(call.outputs) < 2:
        return arrays
    return [arrays, *[unzeroed(arrays)] * (len(call.outputs) - 1)]


@rule("aten.zeros_like.default")
def zeros_like(call: Call) -> Arrays:
    """Zero everywhere, in the shape of its input."""
    return through(call)


@rule(*names(ACTIVATIONS))
def activation(call: Call) -> Arrays:
    """Maps zero to zero."""
    call.tag(call.value("self").arrays, Tag.NONLINEAR)
    return through(call)


@rule(*names(NOT_ZERO))
def not_zero(call: Call) -> Arrays:
    """Maps zero to something else."""
    call.tag(call.value("self").arrays, Tag.NONLINEAR)
    return through(call, zero=False)


@rule(*names(SINGULAR))
def singular(call: Call) -> Arrays:
    """Maps zero to infinity: the masked model would not be finite there."""
    call.pin((a for a in call.value("self").arrays if a.zero), "zero would become infinite here")
    return through(call, zero=False)


@rule("aten.pow.Scalar", "aten.pow.Tensor_Tensor")
def exponential(call: Call) -> Arrays:
    """A labelled exponent: any base that removal makes zero could become infinite."""
    base = call.get("self")
    call.tag(call.value("exponent").arrays, Tag.NONLINEAR)
    if isinstance(base, Value):
        call.pin((a for a in base.arrays if a.zero), "zero would become infinite here")
    return pointwise(call, ("self", "exponent"), neither)


@rule("aten.pow.Tensor_Scalar", "aten.float_power.Tensor_Scalar")
def power(call: Call) -> Arrays:
    """Positive powers keep zero."""
    exponent = call.get("exponent")
    if isinstance(exponent, (int, float)) and exponent > 0:
        return through(call)
    call.pin((a for a in call.value("self").arrays if a.zero), "zero would become infinite here")
    return through(call, zero=False)


@rule("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor", "aten.subtract.Tensor", "aten.lerp.Scalar")
def add(call: Call) -> Arrays:
    """A sum: zero where both terms are."""
    return pointwise(
        call,
        ("self", "other", "end"),
        both if isinstance(call.get("other", call.get("end")), Value) else neither,
    )


@rule("aten.mul.Tensor", "aten.multiply.Tensor")
def mul(call: Call) -> Arrays:
    """A product: zero where either factor is. Two labelled activations are a gate."""
    if _is_gating(call):
        call.tag((*call.value("self").arrays, *call.value("other").arrays), Tag.NONLINEAR)
    return pointwise(call, ("self", "other"), either)


@rule(
    "aten.div.Tensor",
    "aten.div.Tensor_mode",
    "aten.true_divide.Tensor",
    "aten.divide.Tensor",
    "aten.floor_divide.default",
    "aten.remainder.Tensor",
    "aten.fmod.Tensor",
    "aten.atan2.default",
    "aten.xlogy.Tensor",
    "aten.ldexp.Tensor",
)
def div(call: Call) -> Arrays:
    """A quotient: zero where the numerator is; the denominator must not vanish."""
    other = call.get("other")
    if isinstance(other, Value):
        call.pin((a for a in other.arrays if a.zero), "division by an entry that removal makes zero")
    return pointwise(call, ("self", "other"), first)


@rule(
    "aten.maximum.default",
    "aten.minimum.default",
    "aten.max.other",
    "aten.min.other",
    "aten.hypot.default",
    "aten.copysign.Tensor",
    "aten.fmax.default",
    "aten.fmin.default",
)
def extremum(call: Call) -> Arrays:
    """Zero where both operands are."""
    return pointwise(call, ("self", "other"), both)


@rule(
    "aten.__and__.Tensor",
    "aten.__or__.Tensor",
    "aten.__xor__.Tensor",
    "aten.bitwise_and.Tensor",
    "aten.bitwise_or.Tensor",
    "aten.logical_and.default",
    "aten.logical_or.default",
    "aten.logical_xor.default",
    "aten.ge.Tensor",
    "aten.gt.Tensor",
    "aten.le.Tensor",
    "aten.lt.Tensor",
    "aten.eq.Tensor",
    "aten.ne.Tensor",
    "aten.clamp.Tensor",
    "aten.clamp_min.Tensor",
    "aten.clamp_max.Tensor",
    "aten.polar.default",
    "aten.logaddexp.default",
    "aten.logaddexp2.default",
)
def compare(call: Call) -> Arrays:
    """Entry by entry, with no promise about zero."""
    return pointwise(call, ("self", "other", "min", "max", "abs", "angle"), neither)


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(call: Call) -> Arrays:
    """Zero where both branches are; a scalar branch counts unless it is zero."""
    scalars = [s for s in (call.get("self"), call.get("other")) if not isinstance(s, Value)]
    names = ("self", "other", "condition")
    present = [n for n in names if isinstance(call.get(n), Value)]
    chosen = [i for i, n in enumerate(present) if n != "condition"]

    def zero(flags: list[bool] | tuple[bool, ...]) -> bool:
        return bool(chosen) and all(flags[i] for i in chosen) and all(s == 0 for s in scalars)

    return pointwise(call, names, zero)  # type: ignore[arg-type]


@rule("aten.masked_fill.Scalar")
def masked_fill(call: Call) -> Arrays:
    """Zero stays only where the fill value is zero too."""
    return pointwise(call, ("self", "mask"), first if call.get("value") == 0 else neither)


@rule("aten.masked_fill.Tensor")
def masked_fill_tensor(call: Call) -> Arrays:
    """The fill value is not known."""
    return pointwise(call, ("self", "mask"), neither)


@rule("aten.addcmul.default")
def addcmul(call: Call) -> Arrays:
    """``self + value * tensor1 * tensor2``."""
    return pointwise(call, ("self", "tensor1", "tensor2"), lambda f: f[0] and (f[1] or f[2]))


@rule("aten.addcdiv.default")
def addcdiv(call: Call) -> Arrays:
    """``self + value * tensor1 / tensor2``; the denominator must not vanish."""
    below = call.value("tensor2")
    call.pin((a for a in below.arrays if a.zero), "division by an entry that removal makes zero")
    return pointwise(call, ("self", "tensor1", "tensor2"), lambda f: f[0] and f[1])


@rule("aten.lerp.Tensor")
def lerp(call: Call) -> Arrays:
    """``self + weight * (end - self)``."""
    return pointwise(call, ("self", "end", "weight"), lambda f: f[0] and f[1])


@rule("aten.prelu.default")
def prelu(call: Call) -> Arrays:
    """One slope for all, or one per channel (axis 1)."""
    weight, x = call.value("weight"), call.value("self")
    axis = (0,) if weight.shape[0] == 1 or x.rank < 2 else (1,)
    return meet(call, x.shape, [("self", x, tuple(range(x.rank))), ("weight", weight, axis)], first)
