"""The coupling graph: looking things up, and its views for people and for networkx."""

import networkx as nx
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.coupling import CouplingGraph, Frozen, Member
from ecospa_fx.labels import Reason


@pytest.fixture(name="graph", scope="module")
def _graph() -> CouplingGraph:
    torch.manual_seed(0)
    layers = nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5)
    return ecospa_fx.compile(nn.Sequential(*layers), args=(torch.randn(3, 5),)).couplings


def test_lookup(graph: CouplingGraph) -> None:
    assert [c.name for c in graph] == ["ffn", "ffn2"]
    assert len(graph) == 2
    assert graph["ffn2"].num_units == 7
    assert graph["ffn"].weights == (Member("0.weight", 0, "out"), Member("2.weight", 1, "in"))
    assert repr(graph["ffn"]) == "Couple('ffn', 9 units: 0.weight[0:out], 2.weight[1:in])"
    with pytest.raises(KeyError):
        graph["ffn3"]


def test_kinds(graph: CouplingGraph) -> None:
    assert graph.of_kinds() == graph.couples
    assert graph.of_kinds(("qk",)) == ()


def test_as_a_bipartite_graph(graph: CouplingGraph) -> None:
    view = graph.graph
    assert nx.is_bipartite(view)
    assert set(view["2.weight"]) == {"ffn", "ffn2"}
    assert view.edges["ffn", "2.weight"] == {"axis": 1, "role": "in"}
    assert view.nodes["ffn"] == {"bipartite": "couple", "kind": "ffn", "num_units": 9}
    assert view.nodes["0.weight"]["shape"] == (9, 5)


def test_explain(graph: CouplingGraph) -> None:
    assert graph.explain("2.weight").splitlines() == [
        "2.weight [7, 9]",
        "  axis 1 (in): 9 units of ffn",
        "  axis 0 (out): 7 units of ffn2",
    ]
    assert "axis 0: 5 of 5 frozen: the model returns this axis [output]" in graph.explain("4.weight")


def test_summary(graph: CouplingGraph) -> None:
    assert [line.split() for line in str(graph).splitlines()] == [
        ["ffn", "1", "x", "9", "units"],
        ["ffn2", "1", "x", "7", "units"],
    ]


def test_frozen_in_words() -> None:
    reason = Reason("it may not", "aten.foo", "foo_1", "mine.py:3: y = foo(x)")
    assert str(Frozen("w", 1, 8, 8, reason)) == "w axis 1: it may not [aten.foo] at mine.py:3: y = foo(x)"
    assert str(Frozen("w", 0, 3, 8, Reason("no"))) == "w axis 0 (3 of 8): no"
