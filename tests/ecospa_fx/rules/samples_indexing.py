"""Sample calls of lookups and writes by number."""

import torch

from ecospa_fx.testing import activation, constant, index, sample, truth, weight

X = activation(4, 7, 5, on=2)
ROWS, COLUMNS = index(3, high=4), index(3, high=7)
ALONG = index(4, 3, 5, high=7)
UNIQUE = torch.tensor([2, 0, 3])

PUT = (
    sample(X, [ROWS], activation(3, 7, 5, on=2)),
    sample(X, [ROWS, COLUMNS], activation(3, 5, on=1)),
    sample(X, [None, torch.tensor([2, 0, 6])], activation(4, 3, 5, on=2)),
    sample(X, [torch.tensor([2, 0, 3])], activation(5, on=0)),
    sample(X, [ROWS, COLUMNS], activation(3, 5, on=1), True),
    sample(X, [None, None, index(3, high=5)], activation(4, 7, 3), frozen=True),
)
GET = (
    sample(X, [ROWS]),
    sample(X, [ROWS, COLUMNS]),
    sample(X, [None, COLUMNS]),
    sample(X, [None, index(2, 3, high=7)]),
    sample(X, [truth(4)]),
    sample(activation(4, 5, 7, on=1), [ROWS, None, COLUMNS]),
    sample(activation(4, 3, 7, 5, on=[(1, 3)]), [None, None, COLUMNS]),
    sample(weight(4, 7), [None, index(2, 3, high=7)]),
    sample(X, [None, None, index(3, high=5)], frozen=True),
)

SAMPLES = {
    "aten.index.Tensor": GET,
    "aten._unsafe_index.Tensor": GET[:3],
    "aten.index_put.default": PUT,
    "aten._unsafe_index_put.default": PUT[:2],
    "aten.gather.default": (
        sample(X, 1, ALONG),
        sample(activation(4, 7, 5, on=0), 1, ALONG),
        sample(activation(4, 7, 5, on=1), 1, ALONG, frozen=True),
    ),
    "aten.take_along_dim.default": (sample(X, ALONG, 1),),
    "aten.scatter.src": (sample(X, 1, index(4, 1, 5, high=7), activation(4, 1, 5, on=2)),),
    "aten.scatter_add.default": (sample(X, 1, index(4, 3, 5, high=7), activation(4, 3, 5, on=2)),),
    "aten.scatter_reduce.two": (sample(X, 1, index(4, 3, 5, high=7), activation(4, 3, 5, on=2), "sum"),),
    "aten.scatter.value": (sample(X, 1, ALONG, 0), sample(X, 1, ALONG, 3)),
    "aten.scatter.value_reduce": (sample(X, 1, ALONG, 3, reduce="add"),),
    "aten.index_select.default": (sample(X, 1, COLUMNS), sample(X, 2, index(3, high=5), frozen=True)),
    "aten.masked_scatter.default": (
        sample(X, truth(4, 7, 1), activation(30, 5, on=1)),
        sample(X, truth(7, 1), activation(4, 8, 5, on=2)),
        sample(X, truth(4, 7, 1), activation(4, 8, 5, on=[1, 2])),
        sample(X, truth(4, 7, 1), weight(30, 5)),
        sample(X, truth(4, 7, 1), constant(30, 5)),
        sample(X, truth(4, 7, 5), activation(30, 5, on=1), frozen=True),
        sample(X, truth(4, 7, 1), activation(140, on=0), frozen=True),
        sample(X, truth(4, 7, 1), activation(30, 5), frozen=True),
    ),
    "aten.index_copy.default": (sample(X, 0, UNIQUE, activation(3, 7, 5, on=2)),),
    "aten.index_add.default": (sample(X, 0, UNIQUE, activation(3, 7, 5, on=2)),),
    "aten.index_fill.int_Scalar": (sample(X, 0, UNIQUE, 0), sample(X, 0, UNIQUE, 2)),
    "aten.tril.default": (sample(activation(2, 3, 7, 7, on=1)), sample(X, frozen=True)),
    "aten.triu.default": (sample(activation(2, 3, 7, 7, on=1)),),
    "aten.index_reduce.default": (
        sample(X, 0, UNIQUE, activation(3, 7, 5, on=2), "mean"),
        sample(X, 2, UNIQUE, activation(4, 7, 3), "amax", frozen=True),
    ),
    "aten.segment_reduce.default": (
        sample(X, "sum", lengths=torch.tensor([1, 3])),
        sample(X, "max", lengths=torch.tensor([1, 3])),
        sample(activation(4, 7, on=0), "sum", lengths=torch.tensor([1, 3]), frozen=True),
    ),
    "aten.repeat_interleave.self_Tensor": (
        sample(X, torch.tensor([1, 0, 2, 1]), 0),
        sample(X, torch.tensor([1, 0, 2, 1, 1]), 2, frozen=True),
        sample(weight(5), torch.tensor([1, 0, 2, 1, 1]), frozen=True),
    ),
    "aten.rot90.default": (sample(X, 1, [0, 1]), sample(X, 1, [0, 2], frozen=True)),
    "aten.trapezoid.dx": (sample(X, dim=1), sample(X, frozen=True)),
    "aten.gradient.scalarint": (sample(X, dim=1), sample(X, dim=2, frozen=True), sample(X, frozen=True)),
    "aten.diff.default": (sample(X, 1, 1), sample(X, frozen=True)),
}
