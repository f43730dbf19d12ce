"""Propagate: which parameter axes are tied, and which are held, in tiny graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ecospa_fx.diagnosis import source_line
from ecospa_fx.errors import AnalysisError
from ecospa_fx.labels import LabelArray, Nature
from ecospa_fx.passes.propagate import named_arguments, propagate
from ecospa_fx.program import Analysis, Program
from ecospa_fx.rules.registry import Rule, RuleTable
from tests.models.tiny import Function, program


def components(analysis: Analysis) -> dict[str, list[int]]:
    """Components of every labelled parameter axis, numbered as they come."""
    number: dict[int, int] = {}
    found = {}
    for name, axes in analysis.labels.items():
        for axis, ids in enumerate(axes):
            if ids is not None:
                held = analysis.partition.component[ids].tolist()
                found[f"{name}{axis}"] = [number.setdefault(c, len(number)) for c in held]
    return found


def tied(analysis: Analysis) -> set[str]:
    """Groups of axes that are tied index by index, such as ``"a0 b1"``."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, held in components(analysis).items():
        groups.setdefault(tuple(held), []).append(name)
    return {" ".join(sorted(names)) for names in groups.values() if len(names) > 1}


def reasons(analysis: Analysis) -> dict[str, str]:
    """Why axes are held, as far as they are."""
    found = {}
    for name, axes in analysis.labels.items():
        for axis, ids in enumerate(axes):
            why = analysis.reason(int(analysis.partition.component[ids[0]])) if ids is not None else None
            if why is not None:
                found[f"{name}{axis}"] = f"{why.text} [{why.op}]"
    return found


def attention(m: object, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, w) for w in (m.q, m.k, m.v))
    return F.linear((q @ k.mT).softmax(-1) @ v, m.o)


W = {"a": (8, 6), "b": (6, 8)}


def up(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.a)


def down(m: Any, y: Tensor) -> Tensor:
    return F.linear(y, m.b)


CASES: dict[str, tuple[Function, dict[str, tuple[int, ...]], set[str]]] = {
    "chain": (lambda m, x: down(m, up(m, x).relu()), W, {"a0 b1"}),
    "bias": (lambda m, x: down(m, F.linear(x, m.a, m.c)), W | {"c": (8,)}, {"a0 b1 c0"}),
    "transposed": (lambda m, x: x @ m.b @ m.a, W, {"a0 b1"}),
    "gate": (lambda m, x: down(m, up(m, x) * F.linear(x, m.c)), W | {"c": (8, 6)}, {"a0 b1 c0"}),
    "residual": (lambda m, x: down(m, up(m, x) + F.linear(up(m, x), m.c)),
                 W | {"c": (8, 8)}, {"a0 b1 c0 c1"}),
    "attention": (attention, {"q": (8, 6), "k": (8, 6), "v": (4, 6), "o": (6, 4)}, {"k0 q0", "o1 v0"}),
    "einsum": (lambda m, x: down(m, torch.einsum("bti,oi->bto", x, m.a)), W, {"a0 b1"}),
    "norm": (lambda m, x: down(m, F.layer_norm(up(m, x), (8,), m.c, m.d)),
             W | {"c": (8,), "d": (8,)}, {"a0 b1 c0 d0"}),
    "two ways": (lambda m, x: (down(m, up(m, x)), F.linear(up(m, x), m.c)),
                 W | {"c": (6, 8)}, {"a0 b1 c1"}),
    "apart": (lambda m, x: up(m, x).sum() + F.linear(x, m.c).sum(), W | {"c": (8, 6)}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shapes", "groups"), CASES.values(), ids=CASES)
def test_axes_that_are_tied(function: Function, shapes: dict[str, tuple[int, ...]], groups: set[str]) -> None:
    analysis = propagate(program(function, **shapes))
    inner = {g for g in tied(analysis) if not set(g.split()) <= {"a1", "c1", "q1", "k1", "v1"}}
    assert inner == groups
    assert not analysis.unknown


def half(y: Tensor) -> Tensor:
    a, b = y.chunk(2, -1)
    return y + torch.cat((-b, a), -1)


PARTS: dict[str, tuple[Function, list[int], list[int]]] = {
    "halves": (lambda m, x: down(m, half(up(m, x))), [0, 1, 2, 3] * 2, [0, 1, 2, 3] * 2),
    "one part": (lambda m, x: F.linear(up(m, x)[..., 2:], m.b[:, :6]), list(range(8)), list(range(2, 8))),
    "turned": (lambda m, x: down(m, up(m, x).flip(-1)), list(range(8)), list(range(7, -1, -1))),
}  # fmt: skip


@pytest.mark.parametrize(("function", "rows", "columns"), PARTS.values(), ids=PARTS)
def test_entries_that_are_tied(function: Function, rows: list[int], columns: list[int]) -> None:
    found = components(propagate(program(function, **W)))
    first: dict[int, int] = {}
    numbered = [first.setdefault(c, len(first)) for c in found["a0"]]
    assert numbered == rows
    assert [first.get(c) for c in found["b1"]][: len(columns)] == columns


HELD: dict[str, tuple[Function, dict[str, str]]] = {
    "free inside": (lambda m, x: down(m, up(m, x)), {}),
    "softmax": (lambda m, x: down(m, up(m, x).softmax(-1)), {"a0": "aten.softmax.int"}),
    "sort": (lambda m, x: down(m, up(m, x).sort(-1)[0]), {"a0": "aten.sort.default"}),
    "unknown": (lambda m, x: down(m, torch.special.airy_ai(up(m, x))),
                {"a0": "no rule for this operator [aten.special_airy_ai.default]"}),
    "an input": (lambda m, x: down(m, up(m, x) + x.repeat(1, 1, 2)[..., 4:]), {"a0": "without labels"}),
}  # fmt: skip


@pytest.mark.parametrize(("function", "held"), HELD.values(), ids=HELD)
def test_axes_that_are_held(function: Function, held: dict[str, str]) -> None:
    found = reasons(propagate(program(function, **W)))
    assert found.pop("b0") == "the model returns this axis [output]"
    assert "without labels" in found.pop("a1")
    assert {k for k in found if k == "a0"} == held.keys()
    for name, words in held.items():
        assert words in found[name]


def test_unknown_operators_are_counted() -> None:
    function = HELD["unknown"][0]
    assert propagate(program(function, **W)).unknown == {"aten.special_airy_ai.default": 1}
    assert propagate(program(lambda m, x: torch.special.airy_ai(x))).unknown == {}


def test_the_program_is_not_changed() -> None:
    made = program(*CASES["attention"][:1], **CASES["attention"][1])
    before = str(made.graph)
    first, second = propagate(made), propagate(made)
    assert str(made.graph) == before
    assert components(first) == components(second)


def test_natures() -> None:
    values = propagate(program(lambda m, x: F.linear(x, m.a + torch.ones(6)), a=(8, 6))).values
    by_name = {n.name.split("_")[0]: v.nature for n, v in values.items()}
    assert by_name["x"] is Nature.ACTIVATION
    assert (by_name["a"], by_name["ones"]) == (Nature.WEIGHT, Nature.CONSTANT)
    assert (by_name["add"], by_name["linear"]) == (Nature.WEIGHT, Nature.ACTIVATION)


def test_a_rule_that_breaks_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RuleTable()
    table.add(Rule("aten.sin.default", lambda call: (LabelArray(np.arange(3)),)))
    monkeypatch.setattr("ecospa_fx.passes.propagate.TABLE", table)
    with pytest.raises(AnalysisError, match=r"rule of aten\.sin\.default gave labels \(3,\).*tiny\.py:\d+"):
        propagate(program(lambda m, x: m.a.sin() + x, a=(7, 6)))


@pytest.mark.parametrize("read", [0, 1])
def test_the_shape_of_an_output_counts_where_it_is_read(read: int) -> None:
    made = program(lambda m, x: m.a.max(0)[read] + x[0, 0], a=(7, 6))
    node = next(n for n in made.graph.nodes if n.name == "max_1")
    values, places = node.meta["val"]
    node.meta["val"] = (values, places[None])  # as torch 2.11 tells the states of an LSTM
    if read == 0:
        assert set(propagate(made).labels) == {"a"}
        return
    with pytest.raises(AnalysisError, match="gave labels"):
        propagate(made)


def test_modules_in_a_graph_are_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    _, spec = pytree.tree_flatten(0)
    with pytest.raises(AnalysisError, match="call_module layer"):
        propagate(Program(graph, {}, {}, spec, ("x",), lambda _: None))


def test_names_of_arguments_and_the_users_line() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.transpose.int, (x, 0), {"dim1": 1})
    assert named_arguments(node, lambda n: n.name) == {"self": "x", "dim0": 0, "dim1": 1}
    assert source_line(node) == ""
    frames = [("mine.py", 3, "f", "y = g(x)"), (f"{torch.__path__[0]}/nn.py", 9, "g", "return x.t()")]
    node.meta["stack_trace"] = "\n".join(f'File "{f}", line {n}, in {i}\n    {c}' for f, n, i, c in frames)
    assert source_line(node) == "mine.py:3: y = g(x)"
