"""Sample calls of operators that replace a part of a tensor, and of stacked experts."""

import torch
import transformers.integrations.moe  # noqa: F401  registers its operator

from ecospa_fx.testing import activation, constant, sample, weight

X = activation(2, 7, 6, on=2)
HEADS = activation(2, 3, 7, 6, on=[(1, 3)])
ENDS = torch.tensor([3, 4, 9], dtype=torch.int32)
ROUTED = (
    sample(activation(9, 8, on=1), weight(3, 8, 4), offs=ENDS, kept_in=torch.float32),
    sample(activation(9, 8), weight(3, 8, 4), offs=ENDS, kept_in=torch.float32),
)

SAMPLES = {
    "aten.copy.default": (
        sample(activation(2, 7, 6), X),
        sample(activation(2, 7, 6, on=2), X),
        sample(activation(4, 2, 7, 6), X),
        sample(activation(2, 3, 7, 6), activation(2, 1, 7, 6, on=3)),
    ),
    "aten.slice_scatter.default": (
        sample(X, activation(2, 7, 3, on=2), 2, 1, 4),
        sample(X, activation(2, 7, 2, on=2), -1, 0, 2),
        sample(X, activation(2, 3, 6, on=2), 1, 2, 5),
        sample(HEADS, activation(2, 3, 7, 2, on=[(1, 3)]), 3, 4),
        sample(X, activation(2, 7, 3), 2, 1, 4, rolls=False),
        sample(X, constant(2, 3, 6), 1, 0, 3),
        sample(X, activation(2, 7, 3, on=2), 2, 0, 6, 2, frozen=True),
    ),
    "aten.select_scatter.default": (
        sample(X, activation(2, 6, on=1), 1, 3),
        sample(X, constant(2, 6), -2, 0),
        sample(HEADS, activation(2, 3, 6, on=[(1, 2)]), 2, 4),
        sample(X, activation(2, 7), 2, 1, frozen=True),
    ),
    "transformers.grouped_mm_fallback.default": ROUTED,
    "aten._grouped_mm.default": ROUTED,
}
