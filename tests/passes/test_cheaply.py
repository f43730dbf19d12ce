from __future__ import annotations

import contextlib

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from ecospa_fx.passes.cheaply import cheaply, code_on_demand


def test_exports_come_to_the_same_graph() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    graphs = []
    for context in (contextlib.nullcontext(), cheaply()):
        with context:
            exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
        graphs.append([(n.op, n.name, str(n.target), n.args) for n in exported.graph.nodes])
    assert str(graphs[0]) == str(graphs[1])


def test_settings_are_what_they_were_afterwards() -> None:
    recompile, kept = fx.GraphModule.recompile, torch._dynamo.config.fake_tensor_cache_enabled
    with cheaply():
        assert not torch._dynamo.config.fake_tensor_cache_enabled
    assert (fx.GraphModule.recompile, torch._dynamo.config.fake_tensor_cache_enabled) == (recompile, kept)


@pytest.mark.parametrize("inside", [True, False])
def test_code_is_that_of_the_graph_as_it_is_when_it_is_called(inside: bool) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(code_on_demand())
        module = fx.symbolic_trace(nn.ReLU())
        for node in module.graph.nodes:
            if node.op == "call_function":
                node.target = torch.neg
                node.kwargs = {}
        module.recompile()
        if not inside:
            stack.close()
        assert torch.equal(module(torch.ones(2)), torch.full((2,), -1.0))
        assert "torch.neg" in module.code


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


def test_nodes_tell_the_line_that_they_come_from() -> None:
    traces = []
    for context in (contextlib.nullcontext(), cheaply()):
        with context:
            exported = torch.export.export(Named(), (torch.ones(2),), strict=False)
        traces.append([n.meta["stack_trace"] for n in exported.graph.nodes if n.op == "call_function"])
    assert traces[0] == traces[1]
    assert "return x.relu()" in traces[0][0]
