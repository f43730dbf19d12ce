"""Sample calls of operators that move entries, and of views."""

from ecospa_fx.testing import activation, constant, sample, weight

X = activation(2, 7, 6, on=2)
HEADS = activation(2, 3, 7, 6, on=[(1, 3)])
BOTH = activation(2, 3, 7, on=[1, 2])
FLAT = activation(2, 7, 18, on=2)
ONES = activation(2, 1, 7, 1, on=2)

SPLIT = (
    sample(X, [1, 2, 3], 2),
    sample(X, [4, 3], 1),
    sample(HEADS, [2, 4], -1),
    sample(FLAT, [6, 6, 6], -1),
)
CAT = (
    sample([X, activation(2, 7, 4, on=2)], 2),
    sample([X, activation(2, 5, 6, on=2)], 1),
    sample([X, activation(2, 7, 6, on=2)], -1),
    sample([HEADS, activation(2, 3, 7, 4, on=[(1, 3)])], 3),
    sample([HEADS, activation(2, 2, 7, 6, on=[(1, 3)])], 1, frozen=True),
    sample([X, activation(2, 7, 4)], 2),
    sample([X, activation(2, 5, 6)], 1, frozen=True),
    sample([X, constant(2, 5, 6)], 1),
    sample([weight(3, 6), weight(4, 6)], 0),
    sample([X, X], 2),
    sample([activation(2, 7, 6, on=2, zero=False), X], 2),
    sample([activation(2, 7, 0), X], 2),
)
STACK = (
    sample([X, activation(2, 7, 6, on=2)], 2),
    sample([X, activation(2, 7, 6, on=2)], -1),
    sample([HEADS, activation(2, 3, 7, 6, on=[(1, 3)])], 4),
    sample([X, activation(2, 7, 6)], 0, frozen=True),
)
VIEW = (
    sample(FLAT, (2, 7, 3, 6)),
    sample(FLAT, (2, 7, 3, -1)),
    sample(FLAT, (14, 18)),
    sample(HEADS, (2, 3, 7, 2, 3)),
    sample(activation(2, 7, 3, 6, on=[(2, 3)]), (2, 7, 18)),
    sample(activation(2, 7, 3, 6, on=[2]), (2, 7, 18)),
    sample(activation(2, 7, 3, 6, on=[3]), (2, 7, 18)),
    sample(activation(2, 7, 3, 6, on=[(2, 3)]), (14, 3, 6)),
    sample(activation(2, 7, 3, 6, on=[2, 3]), (2, 7, 18)),
    sample(activation(2, 6, 3, on=[(1, 2)]), (2, 9, 2), rolls=False),
    sample(activation(2, 7, 6, 1, on=2), (2, 7, 6)),
    sample(weight(18, 5), (3, 6, 5)),
    sample(weight(3, 6, 5), (18, 5)),
    sample(activation(2, 5, 12, on=2), (10, 3, 2, 2)),
)

SAMPLES = {
    "aten.transpose.int": (sample(X, 1, 2), sample(HEADS, 1, -1), sample(weight(3, 5), 0, 1)),
    "aten.swapaxes.default": (sample(X, 1, 2), sample(HEADS, 1, 2)),
    "aten.permute.default": (sample(X, (2, 0, 1)), sample(HEADS, (0, 2, 1, 3)), sample(HEADS, (0, -1, 2, 1))),
    "aten.movedim.int": (sample(X, 2, 0), sample(HEADS, 1, -1)),
    "aten.moveaxis.int": (sample(X, -1, 1), sample(HEADS, 1, 2)),
    "aten.t.default": (sample(weight(3, 5)), sample(weight(5))),
    "aten.numpy_T.default": (sample(weight(3, 5)), sample(weight(3, 5, 2))),
    "aten.mT.default": (sample(weight(3, 5)), sample(HEADS)),
    "aten.adjoint.default": (sample(weight(3, 5)), sample(HEADS)),
    "aten.unsqueeze.default": (sample(X, 1), sample(X, -1), sample(HEADS, 2)),
    "aten.squeeze.dim": (sample(ONES, 1), sample(ONES, -1), sample(ONES, 2)),
    "aten.squeeze.dims": (sample(ONES, (1, 3)), sample(ONES, (0, -1))),
    "aten.squeeze.default": (sample(ONES), sample(weight(1, 5, 1))),
    "aten.expand.default": (
        sample(ONES, (2, 4, 7, 3)),
        sample(ONES, (-1, 4, -1, -1)),
        sample(X, (4, 2, 7, 6)),
        sample(activation(2, 3, 1, 7, 6, on=[(1, 4)]), (2, 3, 4, 7, 6)),
    ),
    "aten.broadcast_to.default": (sample(ONES, (2, 4, 7, 3)), sample(weight(5), (3, 5))),
    "aten.expand_as.default": (
        sample(ONES, constant(2, 4, 7, 1)),
        sample(ONES, activation(2, 4, 7, 1), frozen=True),
        sample(weight(5), activation(3, 5, on=1)),
    ),
    "aten.view_as.default": (sample(X, activation(2, 7, 6)),),
    "aten.reshape_as.default": (sample(X, activation(2, 7, 3, 2, on=2)), sample(X, activation(14, 6))),
    "aten.slice.Tensor": (
        sample(X, 2, 1, 5),
        sample(X, 2, -3, 99),
        sample(X, -1, 0, 6, 2),
        sample(X, 1, 2, 4),
        sample(HEADS, 3, None, 3),
        sample(HEADS, 1, 1, 3),
        sample(HEADS, 3, 3),
        sample(weight(6, 5), 0, 2),
    ),
    "aten.narrow.default": (sample(X, 2, 1, 3), sample(HEADS, -1, 3, 3), sample(X, 2, -2, 2)),
    "aten.select.int": (
        sample(X, 1, 3),
        sample(X, 0, -1),
        sample(X, 2, 1, rolls=False),
        sample(HEADS, 1, 2),
        sample(HEADS, 2, 0),
        sample(HEADS, 3, 4),
    ),
    "aten.unbind.int": (
        sample(X, 0),
        sample(X, 1),
        sample(X, 2, frozen=True),
        sample(HEADS, 2),
        sample(activation(2, 7, 3, 6, on=[(2, 3)]), 2),
    ),
    "aten.split_with_sizes.default": SPLIT,
    "aten.split.sizes": SPLIT,
    "aten.split_with_sizes_copy.default": SPLIT,
    "aten.split.Tensor": (sample(X, 4, 2), sample(HEADS, 3, -1), sample(X, 2, 1)),
    "aten.chunk.default": (sample(X, 2, 2), sample(FLAT, 3, -1), sample(X, 3, 1)),
    "aten.tensor_split.sections": (sample(X, 4, 2), sample(X, 2, 1)),
    "aten.flip.default": (
        sample(X, [2]),
        sample(X, [1]),
        sample(X, [0, 2], frozen=True),
        sample(BOTH, [1, 2], frozen=True),
        sample(HEADS, [-1]),
    ),
    "aten.roll.default": (
        sample(X, [2], [2]),
        sample(X, [-1], [0]),
        sample(HEADS, [1], [3]),
        sample(X, [2], frozen=True),
        sample(X, [1, 2], [1, 2], frozen=True),
        sample(BOTH, [1, 1], [1, 2], frozen=True),
    ),
    "aten.repeat_interleave.self_int": (
        sample(X, 3, 2),
        sample(HEADS, 2, 1),
        sample(X, 2, 1),
        sample(X, 2, frozen=True),
    ),
    "aten.repeat.default": (
        sample(X, (1, 1, 3)),
        sample(X, (2, 1, 1, 2)),
        sample(HEADS, (1, 2, 1, 1)),
        sample(ONES, (1, 3, 1, 2)),
    ),
    "aten.tile.default": (sample(X, (1, 1, 3)), sample(X, (2,)), sample(HEADS, (1, 2, 1, 1))),
    "aten.cat.default": CAT,
    "aten.concat.default": CAT,
    "aten.concatenate.default": CAT,
    "aten.stack.default": STACK,
    "aten.view.default": VIEW,
    "aten.reshape.default": VIEW,
    "aten._unsafe_view.default": VIEW,
    "aten.unflatten.int": (
        sample(FLAT, 2, (3, 6)),
        sample(FLAT, -1, (3, -1)),
        sample(weight(6, 5), 0, (2, 3)),
    ),
    "aten.flatten.using_ints": (
        sample(X, 0, 1),
        sample(activation(2, 7, 3, 6, on=[(2, 3)]), 2),
        sample(X, 2, 2),
    ),
    "aten.ravel.default": (
        sample(weight(5)),
        sample(activation(3, 6, on=[(0, 1)])),
        sample(activation(2, 3, 6, on=2)),
    ),
}
