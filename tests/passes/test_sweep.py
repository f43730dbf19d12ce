from __future__ import annotations

import torch
from torch import fx

from ecospa_fx.passes.sweep import sweep

aten = torch.ops.aten


def graph_of(text: str) -> fx.Graph:
    """What is read, and what nobody reads; perhaps a write to it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("unused")
    first = graph.call_function(aten.relu.default, (x,))
    graph.call_function(aten.neg.default, (first,))
    if text == "written":
        graph.call_function(aten.add_.Tensor, (first, 1))
    graph.output(graph.call_function(aten.exp.default, (x,)))
    return graph


def names(graph: fx.Graph) -> list[str]:
    return [str(getattr(n.target, "_opname", n.target)) for n in graph.nodes]


def test_what_nobody_reads_goes_with_what_only_it_reads() -> None:
    graph = graph_of("")
    sweep(graph)
    assert names(graph) == ["x", "unused", "exp", "output"]


def test_what_is_written_stays() -> None:
    graph = graph_of("written")
    sweep(graph)
    assert names(graph) == ["x", "unused", "relu", "add_", "exp", "output"]


def test_others_may_say_what_stays() -> None:
    graph = graph_of("written")
    sweep(graph, lambda node: node.op in ("placeholder", "output"))
    assert names(graph) == ["x", "unused", "exp", "output"]


def test_it_leaves_what_torch_leaves() -> None:
    for text in ("", "written"):
        mine, its = graph_of(text), graph_of(text)
        sweep(mine)
        its.eliminate_dead_code()
        assert names(mine) == names(its)
