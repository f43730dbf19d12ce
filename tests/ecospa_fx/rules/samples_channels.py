"""Sample calls of norms whose statistics belong to channels."""

from ecospa_fx.testing import activation, constant, sample, weight

X = activation(2, 6, 7, on=1)
SHIFTED = activation(2, 6, 7, on=1, zero=False)
MEAN, SPREAD = constant(6), constant(6, low=0.5)

SAMPLES = {
    "aten.batch_norm.default": (
        sample(X, weight(6), weight(6), MEAN, SPREAD, False, 0.1, 1e-5, True),
        sample(SHIFTED, weight(6), weight(6), MEAN, SPREAD, False, 0.1, 1e-5, True),
        sample(X, None, None, MEAN, SPREAD, False, 0.1, 1e-5, True),
        sample(activation(2, 6, 4, 3, on=1), weight(6), None, MEAN, SPREAD, False, 0.1, 1e-5, True),
        sample(X, weight(6), weight(6), MEAN, SPREAD, True, 0.1, 1e-5, True, frozen=True),
        sample(X, None, None, None, None, True, 0.1, 1e-5, True),
        sample(activation(2, 6, 7, on=2), None, None, None, None, True, 0.1, 1e-5, True, frozen=True),
    ),
    "aten._native_batch_norm_legit_no_training.default": (
        sample(X, weight(6), weight(6), MEAN, SPREAD, 0.1, 1e-5),
        sample(SHIFTED, None, None, MEAN, SPREAD, 0.1, 1e-5),
    ),
    "aten._native_batch_norm_legit_functional.default": (
        sample(X, weight(6), weight(6), MEAN, SPREAD, True, 0.1, 1e-5),
        sample(SHIFTED, weight(6), weight(6), MEAN, SPREAD, True, 0.1, 1e-5),
        sample(activation(2, 6, 4, 3, on=1), weight(6), None, MEAN, SPREAD, True, 0.1, 1e-5),
        sample(X, weight(6), weight(6), MEAN, SPREAD, False, 0.1, 1e-5),
        sample(activation(2, 6, 7, on=2), None, None, MEAN, SPREAD, True, 0.1, 1e-5, frozen=True),
    ),
    "aten.group_norm.default": (
        sample(X, 6, weight(6), weight(6)),
        sample(activation(2, 6, 4, 3, on=1), 6, weight(6), weight(6)),
        sample(SHIFTED, 6, weight(6), weight(6)),
        sample(X, 6),
        sample(X, 3, weight(6), weight(6), rolls=False),
        sample(activation(2, 12, 3, on=1), 4, rolls=False),
        sample(activation(2, 6, 7, on=2), 6, frozen=True),
    ),
    "aten.instance_norm.default": (
        sample(X, weight(6), weight(6), None, None, True, 0.1, 1e-5, True),
        sample(X, None, None, None, None, True, 0.1, 1e-5, True),
        sample(SHIFTED, None, None, MEAN, SPREAD, False, 0.1, 1e-5, True),
        sample(X, None, None, MEAN, SPREAD, True, 0.1, 1e-5, True, frozen=True),
        sample(activation(2, 6, 7, on=2), None, None, None, None, True, 0.1, 1e-5, True, frozen=True),
    ),
    "aten.channel_shuffle.default": (sample(X, 3), sample(activation(2, 6, 7, on=2), 2)),
    "aten._weight_norm.default": (
        sample(weight(4, 5, 3), weight(1, 1, 3), 2),
        sample(weight(4, 5), weight(4, 1), 0),
    ),
}
