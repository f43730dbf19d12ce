"""Sample calls of sums, means, norms and orderings."""

from ecospa_fx.testing import activation, sample, weight

X = activation(2, 7, 5, on=2)
HEADS = activation(2, 3, 7, 5, on=[(1, 3)])
NONZERO = activation(2, 7, 5, on=2, zero=False)

REDUCE = (
    sample(X, [2]),
    sample(X, [-1], True),
    sample(X, [1]),
    sample(X, [1, 2]),
    sample(HEADS, [3], True),
    sample(HEADS, [1]),
    sample(HEADS, [1, 3]),
    sample(NONZERO, [2], frozen=True),
    sample(NONZERO, [1]),
    sample(weight(3, 5), [0]),
)
ALL = (sample(X), sample(weight(3, 5)), sample(NONZERO, frozen=True))
ORDERED = (sample(X, 1), sample(X, 2, frozen=True), sample(HEADS, 2))
ORDERED_KEEP = (*ORDERED, sample(X, 1, True))
ORDERED_LIST = (
    sample(X, [1]),
    sample(X, [1], True),
    sample(X, [2], frozen=True),
    sample(HEADS, [3]),
    sample(HEADS, [1], True),
)

SPREAD = (
    sample(X, [2]),
    sample(X, [2], False, True),
    sample(HEADS, [3], True, True),
    sample(X, [1]),
    sample(NONZERO, [2], frozen=True),
)
CORRECTED = (sample(X, [2], correction=0, keepdim=True), sample(X, [1], correction=1))

NORM = (
    sample(X, (5,)),
    sample(X, (5,), weight(5), None, 1e-3),
    sample(HEADS, (5,), weight(5)),
    sample(HEADS, (5,), None, None, 1e-6),
    sample(X, (7, 5)),
    sample(activation(2, 7, 5, on=1), (5,), weight(5)),
    sample(NONZERO, (5,), frozen=True),
    sample(activation(2, 7, 5), (5,), weight(5), frozen=True),
)
LAYER_NORM = (
    *NORM[:2],
    sample(X, (5,), weight(5), weight(5)),
    sample(HEADS, (5,), weight(5), weight(5)),
    *NORM[3:],
)
RMS_NORM = tuple(sample(*each.args[:3], *each.args[4:], frozen=each.frozen) for each in NORM)

SAMPLES = {
    "aten.mean.dim": (*REDUCE, sample(activation(2, 7, 5, on=2, symbolic=(0,)), [0, 2])),
    "aten.mean.default": ALL,
    "aten.sum.dim_IntList": REDUCE,
    "aten.sum.default": ALL,
    "aten.nansum.default": REDUCE,
    "aten.linalg_vector_norm.default": (
        sample(X, 2, [2]),
        sample(X, 3, [-1], True),
        sample(HEADS, 1, [3]),
        sample(X, 0, [2], frozen=True),
        sample(X, float("inf"), [2]),
        sample(NONZERO, 2, [2], frozen=True),
        sample(X, 2, [1]),
    ),
    "aten.norm.ScalarOpt_dim": (sample(X, 2, [2], True), sample(X, None, [2]), sample(X, 3, [1])),
    "aten.norm.Scalar": (sample(X, 2), sample(X, 3)),
    "aten.linalg_norm.default": (sample(X, None, [2], True), sample(X, 2, [1]), sample(weight(3, 5))),
    "aten.var.dim": (
        sample(X, [2]),
        sample(X, [2], False, True),
        sample(HEADS, [3], True, True),
        sample(X, [1]),
        sample(NONZERO, [2], frozen=True),
    ),
    "aten.var.correction": (
        sample(X, [2], correction=0, keepdim=True),
        sample(HEADS, [-1]),
        sample(X, [1], correction=1),
    ),
    "aten.std.dim": SPREAD,
    "aten.std_mean.dim": SPREAD,
    "aten.var_mean.dim": SPREAD,
    "aten.std.correction": CORRECTED,
    "aten.std_mean.correction": CORRECTED,
    "aten.var_mean.correction": CORRECTED,
    "aten.count_nonzero.default": (sample(X, 2), sample(X, 1), sample(X), sample(NONZERO, frozen=True)),
    "aten.count_nonzero.dim_IntList": (sample(X, [2]), sample(X, [1, 2])),
    "aten.renorm.default": (
        sample(X, 2, 1, 1.0),
        sample(X, 2, 2, 1.0),
        sample(NONZERO, 2, 1, 1.0, frozen=True),
    ),
    "aten.dist.default": (sample(X, X), sample(X, X, 1), sample(X, X, 0, frozen=True)),
    "aten.kthvalue.default": (sample(X, 3, 1), sample(X, 3, frozen=True)),
    "aten.mode.default": (sample(X, 1), sample(X, frozen=True)),
    "aten.nanmedian.dim": ORDERED_KEEP,
    "aten.quantile.scalar": (
        sample(X, 0.3, 1),
        sample(X, 0.3, 2, True, frozen=True),
        sample(X, 0.3, frozen=True),
    ),
    "aten.nanquantile.scalar": (sample(X, 0.3, 1),),
    "aten.nanmean.default": (sample(X, [1]), sample(X, [2], frozen=True)),
    "aten.layer_norm.default": LAYER_NORM,
    "aten.rms_norm.default": RMS_NORM,
    "aten.amax.default": ORDERED_LIST,
    "aten.amin.default": ORDERED_LIST,
    "aten.max.dim": (*ORDERED_KEEP, sample(HEADS, 3), sample(HEADS, 1, True), sample(NONZERO, 1)),
    "aten.min.dim": ORDERED_KEEP,
    "aten.argmax.default": (*ORDERED_KEEP, sample(X, frozen=True)),
    "aten.argmin.default": (*ORDERED_KEEP, sample(X, None, False, frozen=True)),
    "aten.cumsum.default": ORDERED,
    "aten.cumprod.default": ORDERED,
    "aten.logsumexp.default": ORDERED_LIST,
    "aten.logcumsumexp.default": ORDERED,
    "aten.prod.dim_int": ORDERED_KEEP,
    "aten.any.dim": ORDERED_KEEP,
    "aten.all.dim": ORDERED_KEEP,
    "aten.sort.default": (*ORDERED, sample(X, frozen=True)),
    "aten.sort.stable": (sample(X, stable=True, dim=1), sample(X, stable=True, dim=-1, frozen=True)),
    "aten.argsort.default": (*ORDERED, sample(X, frozen=True)),
    "aten.argsort.stable": (sample(X, stable=True, dim=1), sample(X, stable=True, frozen=True)),
    "aten.topk.default": (sample(X, 3, 1), sample(X, 3, 2, frozen=True), sample(X, 3, frozen=True)),
    "aten.median.dim": ORDERED_KEEP,
    "aten.cummax.default": ORDERED,
    "aten.cummin.default": ORDERED,
    "aten.max.default": (sample(X, frozen=True),),
    "aten.min.default": (sample(X, frozen=True),),
}
