"""A graph that runs: its tensors are the model's own, at every call."""

from __future__ import annotations

import torch
from torch import fx, nn

from ecospa_fx.executable import Executable, lift

aten = torch.ops.aten
X = torch.ones(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.w = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("b", torch.tensor([10.0, 20.0]))


def graph() -> fx.Graph:
    """``x * inner.w + b + inner.w[index]``."""
    g = fx.Graph()
    w, b = g.get_attr("inner.w"), g.get_attr("b")
    x = g.placeholder("x")
    picked = g.call_function(aten.index_select.default, (g.get_attr("inner.w"), 0, g.get_attr("index")))
    y = g.call_function(aten.add.Tensor, (g.call_function(aten.mul.Tensor, (x, w)), b))
    g.output((g.call_function(aten.add.Tensor, (y, picked)),))
    return g


def executable(model: nn.Module) -> Executable:
    return Executable(graph(), {"index": torch.tensor([1, 0])}, model)


def test_attributes_become_leading_inputs() -> None:
    dense = graph()
    before = str(dense)
    lifted, names, calls = lift(list(dense.nodes))
    assert not calls
    assert names == ("inner.w", "b", "index")
    assert [n.op for n in lifted.nodes][:4] == ["placeholder"] * 4
    assert not [n for n in lifted.nodes if n.op == "get_attr"]
    assert str(dense) == before


def test_runs() -> None:
    assert executable(Model())([X])[0].tolist() == [13, 23]


def test_whatever_replaces_a_tensor_is_used() -> None:
    model = Model()
    run = executable(model)
    with torch.no_grad():
        model.inner.w.add_(1)
    assert run([X])[0].tolist() == [15, 25]
    model.inner.w = nn.Parameter(torch.zeros(2))
    model.b = torch.zeros(2)
    assert run([X])[0].tolist() == [0, 0]
    model.double()
    assert run([X.double()])[0].dtype is torch.float64


def test_gradients_reach_the_models_parameter() -> None:
    model = Model()
    executable(model)([X])[0].sum().backward()
    assert model.inner.w.grad is not None
    assert model.inner.w.grad.tolist() == [2, 2]


def test_constants_follow_the_inputs() -> None:
    model = Model()
    run = executable(model)
    model.to("meta")
    assert run([X.to("meta")])[0].is_meta
    assert run.arguments([X.to("meta")])[2].is_meta
