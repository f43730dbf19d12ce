"""Sample calls of operators that work entry by entry."""

import torch

from ecospa_fx.testing import Sample, activation, constant, index, sample, truth, weight

X = activation(2, 5, on=1)
HEADS = activation(2, 3, 5, on=[(1, 2)])
NONZERO = activation(2, 5, on=1, zero=False, low=0.5)
POSITIVE = activation(2, 5, on=1, low=0.5)
COMPLEX = activation(2, 5, on=1, kind="complex")
MASK = truth(5)
INTEGERS = index(2, 5, high=9)

UNARY = (sample(X), sample(HEADS), sample(NONZERO), sample(weight(3, 5)))
SINGULAR = (sample(POSITIVE, frozen=True), sample(NONZERO))
BINARY = (
    sample(X, activation(2, 5, on=1)),
    sample(X, X),
    sample(HEADS, activation(2, 3, 5, on=[(1, 2)])),
    sample(HEADS, constant(5)),
    sample(HEADS, constant(3, 1)),
    sample(HEADS, weight(5)),
    sample(HEADS, weight(3, 1)),
    sample(X, constant(2, 1)),
    sample(X, NONZERO),
    sample(X, activation(2, 1)),
    sample(X, activation(2, 5), frozen=True),
    sample(activation(2, 3, 5, on=2), activation(3, 1, on=0)),
)
COMPARISON = (sample(X, POSITIVE), sample(HEADS, constant(5)), sample(X, activation(2, 5), frozen=True))
LOGICAL = (sample(truth(2, 5, on=1), truth(2, 5, on=1)), sample(truth(2, 5, on=1), MASK))
RANDOM = (sample(X, shape_only=True), sample(HEADS, shape_only=True))


def each(names: str, *samples: Sample) -> dict[str, tuple[Sample, ...]]:
    """The same samples for several operators."""
    return {f"aten.{n}" if "." in n else f"aten.{n}.default": samples for n in names.split()}


SAMPLES = {
    **each(
        "alias clone contiguous detach lift_fresh lift_fresh_copy _to_copy resolve_conj resolve_neg", *UNARY
    ),
    **each("_conj imag", sample(COMPLEX)),
    **each(
        "neg negative positive sign nan_to_num floor ceil round trunc real conj_physical abs",
        *UNARY,
    ),
    **each("relu relu6 gelu silu mish tanh leaky_relu elu selu celu hardswish hardtanh erf sin sinh", *UNARY),
    **each(
        "deg2rad rad2deg absolute sgn frac angle sinc special_i1 special_i1e special_i0 special_i0e", *UNARY
    ),
    **each("special_erfcx special_ndtr", *UNARY),
    **each("atanh asin", sample(activation(2, 5, on=1, low=-0.9, high=0.9))),
    **each("rrelu", *UNARY),
    **each(
        "logit", sample(activation(2, 5, on=1, zero=False, low=0.1, high=0.9)), sample(POSITIVE, frozen=True)
    ),
    **each("asinh atan tan expm1 hardshrink softshrink erfinv square zeros_like", *UNARY),
    **each(
        "sigmoid hardsigmoid exp exp2 cos cosh acos softplus log_sigmoid erfc isfinite isnan isinf", *UNARY
    ),
    **each("sqrt log1p", sample(NONZERO), sample(weight(3, 5, low=0))),
    **each("rsqrt reciprocal log log2 log10 digamma lgamma", *SINGULAR),
    **each("empty_like rand_like randn_like", *RANDOM),
    **each("ones_like", *UNARY),
    **each("full_like", sample(X, 3.0), sample(HEADS, 3.0)),
    **each("bernoulli", sample(activation(2, 5, on=1, low=0, high=1), shape_only=True)),
    **each("bernoulli.p", sample(X, 0.5, shape_only=True)),
    **each("logical_not bitwise_not", sample(truth(2, 5, on=1))),
    **each("dropout feature_dropout alpha_dropout native_dropout", sample(X, 0.5, False)),
    **each("mul.Scalar multiply.Scalar div.Scalar divide.Scalar", sample(X, 3.0), sample(HEADS, 0.5)),
    **each("add.Scalar sub.Scalar rsub.Scalar", sample(X, 3.0), sample(HEADS, 0.5)),
    **each("ge.Scalar gt.Scalar le.Scalar lt.Scalar eq.Scalar ne.Scalar", sample(X, 0.5), sample(HEADS, 0)),
    **each("floor_divide.Scalar remainder.Scalar fmod.Scalar", sample(X, 0.3)),
    **each("bitwise_and.Scalar", sample(index(2, 5, high=9), 3)),
    **each("clamp clip", sample(X, 0.5, 1.0), sample(X, None, 1.0), sample(HEADS, -1.0)),
    **each("clamp_min clamp_max", sample(X, 0.5), sample(HEADS, -0.5)),
    **each("threshold", sample(X, 0.1, 7.0)),
    **each("pow.Scalar", sample(2.0, X), sample(0.5, HEADS)),
    **each(
        "pow.Tensor_Scalar",
        sample(X, 2),
        sample(X, 3.0),
        sample(POSITIVE, -0.5, frozen=True),
        sample(NONZERO, -0.5),
    ),
    **each("float_power.Tensor_Scalar", sample(X, 2), sample(NONZERO, -0.5)),
    **each("xlogy.Tensor", sample(X, NONZERO), sample(X, POSITIVE, frozen=True)),
    **each("ldexp.Tensor", sample(X, NONZERO), sample(HEADS, constant(5))),
    **each("logaddexp logaddexp2", sample(X, NONZERO), sample(HEADS, constant(5))),
    **each(
        "addcdiv",
        sample(X, X, NONZERO),
        sample(X, constant(5), constant(5, low=0.5)),
        sample(X, X, POSITIVE, frozen=True),
    ),
    **each(
        "pow.Tensor_Tensor",
        sample(NONZERO, X),
        sample(NONZERO, constant(5)),
        sample(constant(5, low=0.5), X),
        sample(POSITIVE, activation(2, 1), frozen=True),
    ),
    **each("to.device", sample(X, torch.device("cpu"), torch.float64)),
    **each("to.dtype", sample(X, torch.float64), sample(HEADS, torch.float32)),
    **each("to.dtype_layout", sample(X, dtype=torch.float64)),
    **each("to.other type_as", sample(X, activation(3)), sample(X, activation(2, 7, on=1))),
    **each("add.Tensor mul.Tensor", *BINARY),
    **each("sub.Tensor subtract.Tensor rsub.Tensor multiply.Tensor", *BINARY[:5]),
    **each("lerp.Scalar", sample(X, activation(2, 5, on=1), 0.3), sample(HEADS, constant(5), 0.3)),
    **each("lerp.Tensor", sample(X, activation(2, 5, on=1), constant(5)), sample(X, X, activation(2, 1))),
    **each(
        "div.Tensor true_divide.Tensor divide.Tensor floor_divide remainder.Tensor fmod.Tensor",
        sample(X, NONZERO),
        sample(X, POSITIVE, frozen=True),
        sample(HEADS, constant(5, low=0.5)),
        sample(X, activation(2, 1, low=0.5)),
        sample(HEADS, constant(3, 1, low=0.5)),
    ),
    **each(
        "div.Tensor_mode", sample(X, NONZERO, rounding_mode="floor"), sample(X, NONZERO, rounding_mode=None)
    ),
    **each("atan2", sample(X, NONZERO), sample(HEADS, constant(5, low=0.5))),
    **each("maximum minimum max.other min.other fmax fmin", *BINARY[:5], BINARY[10]),
    **each("hypot copysign.Tensor", sample(X, NONZERO), sample(HEADS, constant(5, low=0.5))),
    **each("ge.Tensor gt.Tensor le.Tensor lt.Tensor eq.Tensor ne.Tensor", *COMPARISON),
    **each("__and__.Tensor __or__.Tensor __xor__.Tensor bitwise_and.Tensor bitwise_or.Tensor", *LOGICAL),
    **each("logical_and logical_or logical_xor", *LOGICAL),
    **each(
        "clamp.Tensor clamp_min.Tensor clamp_max.Tensor polar",
        sample(POSITIVE, NONZERO),
        sample(HEADS, constant(5)),
    ),
    **each(
        "where.self",
        sample(MASK, X, NONZERO),
        sample(truth(2, 5, on=1), X, X),
        sample(truth(3, 1), HEADS, constant(5)),
        sample(truth(2, 5), X, constant()),
        sample(MASK, X, activation(2, 5), frozen=True),
    ),
    **each("where.ScalarOther", sample(MASK, X, 0.0), sample(MASK, X, 3.0)),
    **each("where.ScalarSelf", sample(MASK, 0.0, X), sample(MASK, 3.0, X)),
    **each("where.Scalar", sample(truth(2, 5, on=1), 1.0, 0.0)),
    **each(
        "masked_fill.Scalar", sample(X, MASK, 0.0), sample(X, MASK, 3.0), sample(HEADS, truth(2, 1, 1), -1.0)
    ),
    **each("masked_fill.Tensor", sample(X, MASK, constant())),
    **each(
        "addcmul",
        sample(X, X, activation(2, 5), frozen=True),
        sample(X, constant(5), activation(2, 5, on=1)),
        sample(X, X, NONZERO),
    ),
    **each("prelu", sample(X, weight(1)), sample(X, weight(5)), sample(activation(2, 5, 3, on=1), weight(5))),
}
