"""Sample calls of sums of products: linear layers, matrix products, attention."""

import torch

from ecospa_fx.testing import activation, constant, index, sample, truth, weight

X = activation(2, 7, 5, on=2)
Q = activation(2, 6, 7, 5, on=[(1, 3)])
K = activation(2, 6, 11, 5, on=[(1, 3)])
V = activation(2, 6, 11, 4, on=[(1, 3)])
ONE_K = activation(2, 3, 11, 5, on=[(1, 3)])
ONE_V = activation(2, 3, 11, 4, on=[(1, 3)])

MATMUL = (
    sample(X, weight(5, 4)),
    sample(Q, activation(2, 6, 5, 11, on=[(1, 2)])),
    sample(activation(2, 6, 7, 11, on=1, zero=False), V),
    sample(X, weight(5)),
    sample(weight(5), weight(5, 4)),
    sample(weight(5), weight(5)),
    sample(constant(7, 7), X),
    sample(X, activation(5, 4), frozen=True),
    sample(activation(2, 7, 5, on=2, zero=False), weight(5, 4)),
    sample(activation(2, 7, 5, on=2, zero=False), activation(2, 5, 4, on=1, zero=False), frozen=True),
    sample(activation(2, 1, 7, 5, on=3), activation(2, 3, 5, 4, on=[(1, 2)])),
)
ATTENTION = (
    sample(Q, K, V),
    sample(Q, K, V, truth(7, 11)),
    sample(Q, K, V, constant(6, 7, 11)),
    sample(Q, K, V, weight(1, 6, 1, 1)),
    sample(Q, K, V, None, 0.0, False, scale=0.3),
    sample(Q, activation(2, 6, 7, 5, on=[(1, 3)]), activation(2, 6, 7, 4, on=[(1, 3)]), None, 0.0, True),
    sample(Q, ONE_K, ONE_V, enable_gqa=True),
    sample(Q, ONE_K, ONE_V, truth(6, 7, 11), enable_gqa=True),
    sample(Q, activation(2, 1, 11, 5, on=3), activation(2, 1, 11, 4, on=3), enable_gqa=True),
    sample(activation(2, 6, 7, 5, on=3), activation(2, 6, 11, 5, on=3), activation(2, 6, 11, 4, on=3)),
    sample(Q, activation(2, 6, 11, 5), activation(2, 6, 11, 4), frozen=True),
)


SAMPLES = {
    "aten.mm.default": (sample(weight(7, 5), weight(5, 4)), sample(activation(7, 5, on=1), weight(5, 4))),
    "aten.bmm.default": (
        sample(activation(3, 7, 5, on=[(0, 2)]), activation(3, 5, 4, on=[(0, 1)])),
        sample(X, activation(2, 5, 4, on=1)),
        sample(weight(3, 7, 5), weight(3, 5, 4)),
    ),
    "aten.mv.default": (sample(weight(7, 5), weight(5)),),
    "aten.dot.default": (sample(weight(5), weight(5)),),
    "aten.outer.default": (sample(weight(5), weight(4)),),
    "aten.vdot.default": (sample(weight(5), weight(5)),),
    "aten.inner.default": (sample(X, weight(4, 5)), sample(weight(5), weight(5))),
    "aten.tensordot.default": (
        sample(X, weight(4, 5), [2], [1]),
        sample(activation(2, 3, 5, on=2), weight(5, 3), [2, 1], [0, 1]),
    ),
    "aten.bilinear.default": (
        sample(X, X, weight(4, 5, 5), weight(4)),
        sample(X, activation(2, 7, 3, on=2), weight(4, 5, 3)),
    ),
    "aten.linalg_vecdot.default": (
        sample(X, X),
        sample(X, activation(2, 1, 5, on=2)),
        sample(X, X, dim=1),
        sample(X, weight(5)),
    ),
    "aten.cosine_similarity.default": (
        sample(X, X, -1),
        sample(X, activation(2, 1, 5, on=2), -1),
        sample(X, X, 1),
        sample(X, activation(2, 7, 5), -1, frozen=True),
    ),
    "aten.cdist.default": (
        sample(X, activation(2, 3, 5, on=2)),
        sample(X, activation(2, 3, 5, on=2), 1.0),
        sample(X, weight(4, 5), rolls=False),
        sample(X, activation(2, 3, 5, on=2), 0.0, frozen=True),
    ),
    "aten._cdist_forward.default": (sample(X, activation(2, 3, 5, on=2), 2.0, None),),
    "aten.pairwise_distance.default": (
        sample(X, X, frozen=True),
        sample(activation(2, 7, 5, on=1), activation(2, 7, 5, on=1)),
        sample(activation(2, 7, 5, on=1), activation(2, 7, 5, on=1), keepdim=True),
    ),
    "aten.addmv.default": (sample(weight(7), weight(7, 5), weight(5)),),
    "aten.addr.default": (sample(weight(7, 5), weight(7), weight(5)),),
    "aten.linalg_multi_dot.default": (
        sample([weight(4, 5), weight(5, 3), weight(3, 2)]),
        sample([weight(5), weight(5, 3), weight(3)]),
    ),
    "aten.embedding_bag.padding_idx": tuple(
        sample(weight(9, 5), index(7, high=9), torch.tensor([0, 3]), False, mode, False, None, False, None)
        for mode in (0, 1, 2)
    ),
    "aten.embedding_bag.default": (sample(weight(9, 5), index(7, high=9), torch.tensor([0, 3])),),
    "aten.matmul.default": MATMUL,
    "aten.linear.default": (
        sample(X, weight(4, 5)),
        sample(X, weight(4, 5), weight(4)),
        sample(activation(2, 5, on=1), weight(4, 5), weight(4)),
        sample(activation(2, 3, 7, 5, on=[(1, 3)]), weight(4, 5)),
        sample(X, weight(5)),
        sample(activation(2, 7, 5), weight(4, 5)),
        sample(activation(2, 3, 7, 5, on=1), weight(4, 5), weight(4)),
    ),
    "aten.addmm.default": (
        sample(weight(4), activation(7, 5, on=1), weight(5, 4)),
        sample(activation(7, 4, on=1), weight(7, 5), weight(5, 4)),
        sample(constant(4), activation(7, 5, on=1), weight(5, 4), beta=0.5, alpha=2),
    ),
    "aten.baddbmm.default": (
        sample(activation(3, 7, 4, on=2), weight(3, 7, 5), weight(3, 5, 4)),
        sample(constant(2, 7, 4), X, activation(2, 5, 4, on=1)),
    ),
    "aten.addbmm.default": (sample(weight(7, 4), weight(3, 7, 5), weight(3, 5, 4)),),
    "aten.einsum.default": (
        sample("bsi,oi->bso", [X, weight(4, 5)]),
        sample("bsi,hdi->bhsd", [X, weight(3, 4, 5)]),
        sample("bhld,bhsd->bhls", [Q, K]),
        sample("bhls,bhsd->blhd", [activation(2, 6, 7, 11, on=1, zero=False), V]),
        sample("blhd,hdo->blo", [activation(2, 7, 6, 5, on=[(2, 3)]), weight(6, 5, 4)]),
        sample("...i,oi->...o", [X, weight(4, 5)]),
        sample("bsi,oi", [X, weight(4, 5)]),
        sample("ij->ji", [weight(3, 5)]),
        sample("ij->i", [weight(3, 5)]),
        sample("ii->i", [weight(5, 5)], frozen=True),
        sample("ij,jk,kl->il", [weight(2, 3), weight(3, 4), weight(4, 5)], frozen=True),
    ),
    "aten.embedding.default": (
        sample(weight(9, 5), index(2, 7, high=9)),
        sample(weight(9, 5), index(7, high=9), 3),
    ),
    "aten.scaled_dot_product_attention.default": ATTENTION,
    "aten.softmax.int": (
        sample(activation(2, 7, 5, on=1), -1),
        sample(activation(2, 7, 5, on=2), -1, frozen=True),
        sample(Q, 2),
    ),
    "aten.log_softmax.int": (
        sample(activation(2, 7, 5, on=1), -1),
        sample(activation(2, 7, 5, on=2), -1, frozen=True),
    ),
    "aten._softmax.default": (sample(activation(2, 7, 5, on=1), -1, False), sample(Q, 2, False)),
    "aten._log_softmax.default": (sample(activation(2, 7, 5, on=1), -1, False),),
    "aten._safe_softmax.default": (
        sample(activation(2, 7, 5, on=1), -1),
        sample(activation(2, 7, 5, on=2), 2, frozen=True),
    ),
}
