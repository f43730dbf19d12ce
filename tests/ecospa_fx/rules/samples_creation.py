"""Sample calls of operators that make tensors from sizes."""

import torch

from ecospa_fx.testing import activation, sample, truth

X = activation(2, 7, 5, on=2)

SAMPLES = {
    "aten.arange.default": (sample(5),),
    "aten.arange.start": (sample(2, 5),),
    "aten.arange.start_step": (sample(2, 9, 3),),
    "aten.zeros.default": (sample((3, 4)),),
    "aten.ones.default": (sample((3, 4)),),
    "aten.full.default": (sample((3, 4), 2.0),),
    "aten.empty.memory_format": (sample((3, 4), shape_only=True),),
    "aten.eye.default": (sample(3),),
    "aten.eye.m": (sample(3, 4),),
    "aten.linspace.default": (sample(0, 1, 5),),
    "aten.scalar_tensor.default": (sample(3.0),),
    "aten.tril_indices.default": (sample(3, 4),),
    "aten.triu_indices.default": (sample(3, 4),),
    "aten.rand.default": (sample((3, 4), shape_only=True),),
    "aten.randn.default": (sample((3, 4), shape_only=True),),
    "aten.randint.default": (sample(9, (3, 4), shape_only=True),),
    "aten.randint.low": (sample(2, 9, (3, 4), shape_only=True),),
    "aten.randperm.default": (sample(5, shape_only=True),),
    "aten.promote_types.default": (sample(torch.float32, torch.int64),),
    "aten.new_ones.default": (sample(X, (3, 4)),),
    "aten.new_zeros.default": (sample(X, (3, 4), dtype=torch.float32),),
    "aten.new_full.default": (sample(X, (3, 4), 2.0),),
    "aten.new_empty.default": (sample(X, (3, 4), shape_only=True),),
    "aten.sym_size.int": (sample(X, 1), sample(X, 2, frozen=True)),
    "aten.sym_stride.int": (sample(X, 1, frozen=True),),
    "aten.sym_numel.default": (sample(X, frozen=True),),
    "aten._assert_tensor_metadata.default": (sample(X, (2, 7, 5), frozen=True),),
    "aten._assert_async.msg": (sample(truth(1), "fails"),),
    "aten._assert_scalar.default": (sample(True, "fails"),),
    "aten.is_nonzero.default": (sample(activation(1)),),
}
