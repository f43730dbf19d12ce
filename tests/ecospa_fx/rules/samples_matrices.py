"""Sample calls of linear algebra, diagonals and tensors that are laid against each other."""

import torch

from ecospa_fx.testing import Operand, Sample, activation, sample, weight


def matrices(on: int) -> torch.Tensor:
    """Positive definite ones that differ."""
    parts = torch.arange(45.0).view(5, 3, 3).sin()
    return parts @ parts.mT + torch.eye(3) * (1 + on)


def square(on: int) -> Sample:
    """A call on matrices with labels on the axis ``on``."""
    return sample(Operand((5, 3, 3), (on,), values=matrices(on)), frozen=on > 0, rolls=on == 0)


MATRIX = Operand((5, 3, 3), (0,), zero=False, values=matrices(0))
FROZEN = sample(Operand((5, 3, 3), (0,), values=matrices(0)), frozen=True)
SQUARE = (square(0), square(2))
RIGHT = activation(5, 3, 4, on=2)
FIXED = activation(5, 3, 3, low=0.5)
REGULAR = "inverse linalg_inv logdet"
UNARY = "matrix_exp linalg_matrix_exp det linalg_det linalg_svdvals"
X, HEADS = activation(2, 7, 5, on=2), activation(2, 3, 5, on=[(1, 2)])

SAMPLES = {
    **{f"aten.{name}.default": (sample(MATRIX), FROZEN, SQUARE[1]) for name in REGULAR.split()},
    **{f"aten.{name}.default": (FROZEN, SQUARE[1]) for name in ("cholesky", "linalg_cholesky")},
    **{f"aten.{name}.default": SQUARE for name in UNARY.split()},
    "aten.linalg_matrix_power.default": tuple(
        sample(*s.args, 2, frozen=s.frozen, rolls=s.rolls) for s in SQUARE
    ),
    "aten.linalg_solve.default": (
        sample(SQUARE[0].args[0], activation(5, 3, 4, on=0), frozen=True),
        sample(FIXED, RIGHT),
        sample(SQUARE[1].args[0], activation(5, 3, 4), frozen=True),
        sample(FIXED, RIGHT, left=True),
    ),
    "aten.linalg_solve_triangular.default": (
        sample(FIXED, RIGHT, upper=True),
        sample(FIXED, activation(5, 3, 4, on=1), upper=True, frozen=True),
    ),
    "aten.linalg_cross.default": (
        sample(activation(5, 3, on=0), activation(5, 3, on=0)),
        sample(activation(5, 3, on=1), activation(5, 3), frozen=True),
    ),
    "aten.cross.default": (sample(activation(5, 3, on=0), activation(5, 3, on=0), 1),),
    "aten.linalg_matrix_norm.str_ord": (sample(SQUARE[0].args[0]), sample(X, frozen=True)),
    "aten.diagonal.default": (
        sample(weight(5, 5)),
        sample(activation(2, 5, 5, on=[1, 2]), 0, 1, 2),
        sample(activation(2, 5, 5, on=0), 0, 1, 2),
        sample(activation(5, 5, on=1), frozen=True),
        sample(weight(5, 5), 1, frozen=True),
    ),
    "aten.diag_embed.default": (sample(weight(5)), sample(X), sample(weight(5), 1, frozen=True)),
    "aten.diag.default": (sample(weight(5)),),
    "aten.meshgrid.default": (sample([weight(5), weight(3)]),),
    "aten.meshgrid.indexing": (
        sample([weight(5), weight(3)], indexing="ij"),
        sample([weight(5), weight(3), weight(2)], indexing="xy"),
    ),
    "aten.broadcast_tensors.default": (
        sample([X, weight(5)]),
        sample([HEADS, weight(3, 1)]),
        sample([X, activation(2, 7, 5)], frozen=True),
    ),
}
