"""Walks: a graph piece by piece, with tensors that change on the way."""

import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.executable import Executable
from ecospa_fx.walk import Walk

X = torch.randn(4, 6, dtype=torch.float64)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8).double(), nn.Linear(8, 6).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)) @ torch.eye(8, dtype=x.dtype).t())


def opened(model: nn.Module) -> tuple[Executable, list[torch.Tensor]]:
    compiled = ecospa_fx.compile(model, args=(X,))
    signature, leaves = compiled.signatures.of({"x": X}, compiled.removal)
    return compiled.signatures.shrunk(signature, compiled.removal, whole=True), leaves


def same(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_a_walk_computes_what_the_graph_does() -> None:
    model = Chain()
    executable, leaves = opened(model)
    nodes = list(executable.module.graph.nodes)
    walk = Walk(executable, leaves, same)
    walk.until(nodes[-1])
    (result,) = nodes[-1].all_input_nodes
    assert torch.equal(walk.value(result), model(X))


def test_a_tensor_may_change_before_it_is_used() -> None:
    model, changed = Chain(), set()
    executable, leaves = opened(model)
    walk = Walk(executable, leaves, lambda name, t: 0 * t if name in changed else t)
    products = [n for n in executable.module.graph.nodes if "linear" in str(n.target)]
    walk.until(products[-1])
    changed.add("b.weight")
    last = list(executable.module.graph.nodes)[-1]
    walk.until(last)
    torch.testing.assert_close(walk.value(last.all_input_nodes[0]), model.b.bias.expand(4, 6))


def test_what_nothing_needs_any_more_is_dropped() -> None:
    executable, leaves = opened(Chain())
    walk = Walk(executable, leaves, same)
    last = list(executable.module.graph.nodes)[-1]
    walk.until(last)
    computed = {n for n in walk._env if n.op != "placeholder"}
    assert computed == set(last.all_input_nodes)
