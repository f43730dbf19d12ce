"""Bindings: functions that compute, bit for bit, what the operators do in whose place they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from ecospa_fx.passes.bindings import call_directly

aten = torch.ops.aten
X, Y, W = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(5, 4)
CALLS: dict[Any, tuple[Any, ...]] = {
    aten.add.Tensor: (X, Y),
    aten.bmm.default: (X, Y.mT),
    aten.cat.default: ([X, Y], -1),
    aten.contiguous.default: (X.mT,),
    aten.div.Tensor: (X, Y),
    aten.expand.default: (X[:, :1], [2, 3, -1]),
    aten.gelu.default: (X,),
    aten.layer_norm.default: (X, [4], W[0], W[1], 1e-5),
    aten.linear.default: (X, W, W[:, 0]),
    aten.matmul.default: (X, W.T),
    aten.mean.dim: (X, [-1], True),
    aten.mul.Tensor: (X, 3.0),
    aten.neg.default: (X,),
    aten.permute.default: (X, [2, 0, 1]),
    aten.pow.Tensor_Scalar: (X, 2),
    aten.relu.default: (X,),
    aten.reshape.default: (X, [2, -1]),
    aten.rsqrt.default: (X.abs(),),
    aten.sigmoid.default: (X,),
    aten.silu.default: (X,),
    aten.softmax.int: (X, -1),
    aten.sub.Tensor: (X, Y),
    aten.tanh.default: (X,),
    aten.to.dtype: (X, torch.float64),
    aten.transpose.int: (X, 1, 2),
    aten.unsqueeze.default: (X, 1),
}
KEYWORDS: dict[Any, dict[str, Any]] = {
    aten.add.Tensor: {"alpha": 2},
    aten.gelu.default: {"approximate": "tanh"},
    aten.softmax.int: {"dtype": torch.float64},
    aten.mean.dim: {"dtype": torch.float64},
}


@pytest.mark.parametrize("target", CALLS, ids=str)
def test_the_same_numbers(target: Any) -> None:
    graph = fx.Graph()
    for keywords in ({}, KEYWORDS.get(target, {})):
        inputs = [graph.placeholder(f"x{i}") for i in range(len(CALLS[target]))]
        node = graph.call_function(target, tuple(inputs), keywords)
        call_directly(node)
        assert not isinstance(node.target, torch._ops.OpOverload)
        args, expected = CALLS[target], target(*CALLS[target], **keywords)
        function = getattr(args[0], str(node.target)) if node.op == "call_method" else None
        found = function(*args[1:], **keywords) if function else node.target(*args, **keywords)  # type: ignore[operator]
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_other_operators_stay() -> None:
    graph = fx.Graph()
    node = graph.call_function(aten.pow.Scalar, (2, graph.placeholder("x")))
    call_directly(node)
    assert node.target is aten.pow.Scalar


def test_a_memory_format_is_named() -> None:
    graph = fx.Graph()
    place = (torch.float64, False, False, torch.contiguous_format)
    graph.output(graph.call_function(aten.to.dtype, (graph.placeholder("x"), *place)))
    call_directly(next(n for n in graph.nodes if n.op == "call_function"))
    torch.testing.assert_close(fx.GraphModule(torch.nn.Module(), graph)(X.mT), X.mT.double())
