"""Sample calls of complex numbers."""

from ecospa_fx.testing import activation, sample

PAIRS = activation(2, 7, 5, 2, on=[(2, 3)])
COMPLEX = activation(2, 7, 5, on=2, kind="complex")

SAMPLES = {
    "aten.view_as_complex.default": (
        sample(PAIRS),
        sample(activation(2, 7, 5, 2, on=2)),
        sample(activation(2, 7, 5, 2, on=3), frozen=True),
    ),
    "aten.view_as_real.default": (sample(COMPLEX),),
    "aten.complex.default": (sample(activation(2, 7, 5, on=2), activation(2, 7, 5, on=2)),),
}
