"""Inline: what stands for calls becomes their nodes, and what is not a call of its own is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ecospa_fx.executable import Executable
from ecospa_fx.passes.capture import _export, capture, from_exported
from ecospa_fx.passes.inline import inline
from ecospa_fx.passes.normalise import normalise
from ecospa_fx.passes.once import Repeats
from ecospa_fx.passes.ways import Way
from ecospa_fx.repeats import ENTER, LEAVE, REPEAT, UnevenError

X = torch.randn(3, 4, requires_grad=True)
DEPTH = 4


class Unit(nn.Module):
    """A linear layer in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) + 0.5


class Row(nn.Module):
    """Layers in a row; ``unit`` is what each does."""

    def __init__(self, unit: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(unit() for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def traced(model: nn.Module) -> tuple[torch.export.ExportedProgram, Repeats]:
    repeats = Repeats(model)
    with repeats.replacing():
        exported, _ = _export(model, {"x": X}, Way({"x": X}))
    return exported, repeats


def test_every_call_is_written_out_with_its_own_tensors() -> None:
    exported, repeats = traced(Row(Unit))
    standing = [n for n in exported.graph.nodes if n.target is REPEAT]
    graph = from_exported(exported, Row(Unit), repeats).graph
    assert len(standing) == 1  # the first is called with a leaf, the last repeats the third
    assert not any(n.target in (ENTER, LEAVE, REPEAT) for n in graph.nodes)
    linear = [n for n in graph.nodes if n.target is torch.ops.aten.linear.default]
    assert [n.args[1].target for n in linear] == [f"layers.{i}.inner.weight" for i in range(DEPTH)]
    assert [list(n.meta["nn_module_stack"].values())[-1][0] for n in linear] == [
        f"layers.{i}.inner" for i in range(DEPTH)
    ]


def test_a_graph_that_repeats_nothing_only_loses_its_markers() -> None:
    exported, repeats = traced(Row(Unit))
    graph = normalise(exported.module(check_guards=False))
    for node in [n for n in graph.nodes if n.target is REPEAT]:
        for user in list(node.users):
            user.replace_all_uses_with(node.args[0][0])
            graph.erase_node(user)
        graph.erase_node(node)
    inline(graph, repeats, {})
    assert len([n for n in graph.nodes if n.op == "call_function"]) == 3 * (DEPTH - 1)


def damaged(change: Callable[[torch.fx.Graph, list[torch.fx.Node]], None]) -> None:
    """Inline after a change of the graph, which is told its linear layers."""
    exported, repeats = traced(Row(Unit))
    module = exported.module(check_guards=False)
    graph = normalise(module)
    change(graph, [n for n in graph.nodes if n.target is torch.ops.aten.linear.default])
    inline(graph, repeats, {})


def test_calls_that_differ_are_refused() -> None:
    def change(graph: torch.fx.Graph, linear: list[torch.fx.Node]) -> None:
        tanh = next(iter(linear[1].users))
        tanh.target = torch.ops.aten.sigmoid.default

    with pytest.raises(UnevenError, match=r"layers\.1 and layers\.2 compute in different ways"):
        damaged(change)


def test_numbers_that_differ_are_refused() -> None:
    def change(graph: torch.fx.Graph, linear: list[torch.fx.Node]) -> None:
        shift = next(iter(next(iter(linear[2].users)).users))
        shift.args = (shift.args[0], 1)

    with pytest.raises(UnevenError, match="compute in different ways"):
        damaged(change)


def test_values_that_are_no_arguments_are_refused() -> None:
    def change(graph: torch.fx.Graph, linear: list[torch.fx.Node]) -> None:
        linear[2].args = (linear[0], *linear[2].args[1:])

    with pytest.raises(UnevenError, match=r"layers\.2 reads what is not among its arguments"):
        damaged(change)


def test_values_that_are_no_results_are_refused() -> None:
    def change(graph: torch.fx.Graph, linear: list[torch.fx.Node]) -> None:
        output = next(iter(reversed(graph.nodes)))
        output.args = ((*output.args[0], linear[2]),)

    with pytest.raises(UnevenError, match=r"layers\.2 gives more to the outside than it returns"):
        damaged(change)


def test_writes_to_what_comes_from_outside_are_refused() -> None:
    def change(graph: torch.fx.Graph, linear: list[torch.fx.Node]) -> None:
        tanh = next(iter(linear[2].users))
        with graph.inserting_before(tanh):
            view = graph.call_function(torch.ops.aten.view.default, (linear[2].args[0], [-1]))
        view.meta = dict(tanh.meta)
        tanh.target, tanh.args = torch.ops.aten.tanh_.default, (view,)

    with pytest.raises(UnevenError, match=r"layers\.2 writes to what it has not made"):
        damaged(change)


class Inside(Unit):
    """Writes to a tensor of its own, through a view."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Inside.calls += 1
        y = self.inner(x)
        y[..., 0].mul_(0.5)
        return y + x


def test_writes_to_what_a_call_has_made_are_repeated() -> None:
    model = Row(Inside)
    program = capture(model, {"x": X})
    assert Inside.calls == DEPTH - 1
    found = Executable(program.graph, program.constants, model)([X])
    assert torch.equal(found[0], model(X))
