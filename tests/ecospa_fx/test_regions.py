"""Regions: which nodes a block's call may run, on graphs written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ecospa_fx.executable import Executable
from ecospa_fx.regions import Region, regions

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Block(), Block()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, *values: Any, _ecospa_stage: Any) -> Any:
        return _ecospa_stage.run(*values)


class Graph:
    """Nodes, each traced from within a block (or none, ``""``, or emitted by a rewrite, ``None``)."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.w = {n: self.graph.get_attr(f"{n}.w") for n in ("a", "b")}
        self.x = self.graph.placeholder("x")

    def add(self, block: str | None, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        if block is not None:
            stack = {"L__self__": ("", "Model")}
            node.meta["nn_module_stack"] = stack | ({f"L__self__{block}": (block, "Block")} if block else {})
        return node


def shown(graph: fx.Graph) -> list[str]:
    """Calls of blocks, and the nodes outside."""
    parts = regions(graph, ["a", "b"]).order
    return [p.block if isinstance(p, Region) else str(p.target).split(".")[1] for p in parts
            if isinstance(p, Region) or p.op == "call_function"]  # fmt: skip


def ran(graph: fx.Graph) -> Sequence[float]:
    """What the parts compute, which has to be what the whole does."""
    constants = {"index": torch.tensor([1, 0])}
    x = torch.tensor([3.0, 5.0])
    whole = Executable(graph, constants, Model())([x.clone()])
    parts = Executable(graph, constants, Model(), ["a", "b"])([x.clone()])
    assert torch.equal(whole[0], parts[0])
    return whole[0].tolist()  # type: ignore[no-any-return]


def test_one_block_after_the_other() -> None:
    g = Graph()
    y = g.add("", aten.sin.default, g.x)
    y = g.add("a", aten.mul.Tensor, y, g.w["a"])
    y = g.add("a", aten.add.Tensor, y, g.x)
    y = g.add("b", aten.mul.Tensor, y, g.w["b"])
    g.graph.output((g.add("", aten.cos.default, y),))
    assert shown(g.graph) == ["sin", "a", "b", "cos"]
    ran(g.graph)


def test_the_last_value_is_the_blocks_own_result() -> None:
    g = Graph()
    early = g.add("a", aten.sin.default, g.x)
    late = g.add("a", aten.mul.Tensor, early, g.w["a"])
    g.graph.output((g.add("", aten.add.Tensor, early, late),))
    (region,) = [p for p in regions(g.graph, ["a"]).order if isinstance(p, Region)]
    assert region.outputs == (late, early)
    assert region.inputs == (g.x,)
    ran(g.graph)


def test_what_stands_between_runs_before_or_after() -> None:
    g = Graph()
    first = g.add("a", aten.mul.Tensor, g.x, g.w["a"])
    after = g.add("", aten.cos.default, first)
    before = g.add("", aten.sin.default, g.x)
    last = g.add("a", aten.add.Tensor, first, before)
    g.graph.output((g.add("", aten.add.Tensor, last, after),))
    assert shown(g.graph) == ["sin", "a", "cos", "add"]
    ran(g.graph)


def test_a_block_that_takes_turns_is_no_region() -> None:
    g = Graph()
    first = g.add("a", aten.mul.Tensor, g.x, g.w["a"])
    outside = g.add("", aten.cos.default, first)
    last = g.add("a", aten.add.Tensor, first, outside)
    g.graph.output((g.add("b", aten.mul.Tensor, last, g.w["b"]),))
    assert shown(g.graph) == ["mul", "cos", "add", "b"]
    assert "takes turns" in regions(g.graph, ["a", "b"]).refused["a"]
    ran(g.graph)


def test_two_blocks_that_take_turns() -> None:
    g = Graph()
    one = g.add("a", aten.mul.Tensor, g.x, g.w["a"])
    two = g.add("b", aten.mul.Tensor, one, g.w["b"])
    three = g.add("a", aten.add.Tensor, two, one)
    g.graph.output((g.add("b", aten.add.Tensor, three, two),))
    found = regions(g.graph, ["a", "b"])
    assert found.refused.keys() == {"a", "b"}
    ran(g.graph)


def test_order_that_counts_is_kept() -> None:
    g = Graph()
    first = g.add("a", aten.mul.Tensor, g.x, g.w["a"])
    g.add("", aten.add_.Tensor, g.x, 1)
    g.graph.output((g.add("a", aten.add.Tensor, first, g.x),))
    assert "has to run between its operators" in regions(g.graph, ["a"]).refused["a"]
    assert ran(g.graph) == [7.0, 16.0]


def test_what_a_rewrite_emits_belongs_to_the_node_after_it() -> None:
    g = Graph()
    index = g.graph.get_attr("index")
    taken = g.add(None, aten.index_select.default, g.x, 0, index)
    y = g.add("a", aten.mul.Tensor, taken, g.w["a"])
    g.graph.output((g.add("b", aten.mul.Tensor, y, g.w["b"]),))
    assert shown(g.graph) == ["a", "b"]
    ran(g.graph)


def test_a_table_gathered_once_for_all_blocks_comes_from_outside() -> None:
    g = Graph()
    index = g.graph.get_attr("index")
    table = g.add("", aten.cos.default, g.x)
    taken = g.add(None, aten.index_select.default, table, 0, index)
    y = g.add("a", aten.mul.Tensor, taken, g.w["a"])
    y = g.add("b", aten.mul.Tensor, y, taken)
    g.graph.output((y,))
    assert shown(g.graph) == ["cos", "index_select", "a", "b"]
    ran(g.graph)


def test_a_block_that_computes_from_nothing_is_not_called() -> None:
    g = Graph()
    y = g.add("a", aten.sin.default, g.w["a"])
    g.graph.output((g.add("", aten.mul.Tensor, g.x, y),))
    assert regions(g.graph, ["a"]).refused == {"a": "nothing goes through it"}
    ran(g.graph)


def test_sizes_of_what_a_block_computes_are_its_own() -> None:
    g = Graph()
    y = g.add("a", aten.mul.Tensor, g.x, g.w["a"])
    y = g.add("a", aten.reshape.default, y, [g.add("a", aten.sym_size.int, y, 0), 1])
    g.graph.output((g.add("b", aten.mul.Tensor, y, g.w["b"]),))
    assert shown(g.graph) == ["a", "b"]
    ran(g.graph)
