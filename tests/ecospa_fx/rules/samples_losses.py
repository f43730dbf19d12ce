"""Sample calls of losses."""

from ecospa_fx.testing import activation, constant, sample

X = activation(2, 7, 5, on=2)
FREE = activation(2, 7, 5, on=2, symbolic=(0,))
CALLS = (
    sample(X, X),
    sample(X, X, 2),
    sample(X, X, 0),
    sample(FREE, FREE),
    sample(X, activation(2, 7, 5, on=2, zero=False), frozen=True),
    sample(X, constant(5), frozen=True),
)
NAMES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

SAMPLES = {f"aten.{name}.default": CALLS for name in NAMES}
SAMPLES["aten.huber_loss.default"] += (sample(X, X, 1, 0.5),)
