"""Bindings: the functions of ``torch`` in place of its operators.

Both run the same kernel. Python reaches a function in half the time that it takes to look up the overload
of an operator and to read its arguments by the schema, which counts where a graph works on one token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_FUNCTIONS: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.div.Tensor: torch.div,
    aten.gelu.default: torch._C._nn.gelu,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: torch._C._nn.linear,
    aten.matmul.default: torch.matmul,
    aten.mean.dim: torch.mean,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.permute.default: torch.permute,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.relu.default: torch.relu,
    aten.reshape.default: torch.reshape,
    aten.rsqrt.default: torch.rsqrt,
    aten.sigmoid.default: torch.sigmoid,
    aten.silu.default: torch._C._nn.silu,
    aten.softmax.int: torch.softmax,
    aten.sub.Tensor: torch.sub,
    aten.tanh.default: torch.tanh,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
}
_METHODS: dict[Any, str] = {
    aten.contiguous.default: "contiguous",
    aten.expand.default: "expand",
    aten.to.dtype: "to",
}
_POSITIONAL = 4
"""Methods take what comes after these, a memory format, by its name only."""


def call_directly(node: fx.Node) -> None:
    """Let a node call the function or method that its operator has in ``torch``."""
    if node.target in _METHODS and len(node.args) <= _POSITIONAL:
        node.op, node.target = "call_method", _METHODS[node.target]
    else:
        node.target = _FUNCTIONS.get(node.target, node.target)
