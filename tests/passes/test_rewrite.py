"""Rewrite: operators before and after, and the values that the smaller graph must compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecospa_fx.errors import PlanError, RewriteError
from ecospa_fx.executable import Executable
from ecospa_fx.masked import narrow
from ecospa_fx.passes.couple import couple
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.propagate import propagate, target_name
from ecospa_fx.passes.rewrite import Rewritten, rewrite
from ecospa_fx.program import Analysis
from ecospa_fx.removal import Removal
from tests.models.tiny import Function, Tiny, X, program

W = {"a": (8, 6), "b": (6, 8)}
Indices = dict[str, dict[int, list[int]]]


def analysed(function: Function, **shapes: tuple[int, ...]) -> Analysis:
    return couple(propagate(program(function, **shapes)))[1]


def removal(analysis: Analysis, indices: Indices) -> Removal:
    arrays = {n: {a: np.array(i) for a, i in axes.items()} for n, axes in indices.items()}
    return Removal({n: analysis.program.parameters[n] for n in indices}, arrays)


def operators(written: Rewritten) -> str:
    called = (target_name(n) for n in written.graph.nodes if n.op == "call_function")
    return " ".join(n.removeprefix("aten.").split(".")[0] for n in called)


def heads(m: object, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in (m.q, m.k, m.v))
    return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), m.o)


def up(m: object, x: Tensor) -> Tensor:
    return F.linear(x, m.a)


def part(m: object, x: Tensor) -> Tensor:
    y = up(m, x)
    return F.linear(y[..., 3:], m.c) + y[..., :3].sum(-1, True)


QKV = {"q": (8, 6), "k": (8, 6), "v": (8, 6), "o": (6, 8)}
BOTH: Indices = {"a": {0: [1, 4, 5]}, "b": {1: [1, 4, 5]}}
KEYS: Indices = {n: {0: [0, 5]} for n in "qk"}
TABLE = torch.linspace(-1, 1, 8, dtype=torch.float64)

CASES: dict[str, tuple[Function, dict[str, tuple[int, ...]], Indices, str]] = {
    "linear": (lambda m, x: F.linear(up(m, x).relu(), m.b), W, BOTH, "linear relu linear"),
    "mean": (lambda m, x: F.linear(up(m, x) * up(m, x).mean(-1, True), m.b), W, BOTH,
             "linear linear mean mul linear"),
    "constant": (lambda m, x: F.linear(up(m, x) * TABLE, m.b), W, BOTH, "linear index_select mul linear"),
    "constant used twice": (lambda m, x: F.linear((up(m, x) * TABLE).relu() * TABLE, m.b), W, BOTH,
                            "linear index_select mul relu mul linear"),
    "part": (part, {"a": (8, 6), "c": (6, 5)}, {"a": {0: [1, 4, 5]}, "c": {1: [1, 2]}}, ""),
    "view": (lambda m, x: F.linear(up(m, x).view(5, -1, 8).relu(), m.b), W, BOTH,
             "linear reshape relu linear"),
    "attention": (heads, QKV, KEYS, ""),
    "values": (heads, QKV, {"v": {0: [3, 4]}, "o": {1: [3, 4]}}, ""),
    "nothing": (heads, QKV, {}, ""),
}  # fmt: skip


def run(written: Rewritten, analysis: Analysis, model: nn.Module, gone: Removal) -> tuple[Tensor, ...]:
    """Output and gradients of the smaller graph, on the survivors of the model's parameters."""
    small = nn.Module()
    for name, p in model.named_parameters():
        setattr(small, name, nn.Parameter(narrow(p.detach(), name, gone)))
    graph = Executable(written.graph, {**analysis.program.constants, **written.constants}, small)
    (y,) = graph([X])
    return (y, *torch.autograd.grad(y.square().sum(), list(small.parameters())))


@pytest.mark.parametrize(("function", "shapes", "indices", "after"), CASES.values(), ids=CASES)
def test_equals_the_masked_function(
    function: Function, shapes: dict[str, tuple[int, ...]], indices: Indices, after: str
) -> None:
    analysis = analysed(function, **shapes)
    before = str(analysis.program.graph)
    gone = removal(analysis, indices)
    written = rewrite(analysis, dead_labels(analysis, gone))
    assert str(analysis.program.graph) == before
    assert not after or " ".join(n for n in operators(written).split() if "sym" not in n) == after
    model = Tiny(function, **shapes)
    y, *gradients = run(written, analysis, model, gone)
    masked = {n: p * gone.mask(n, tuple(p.shape)) for n, p in model.named_parameters()}
    expected = torch.func.functional_call(model, masked, (X,))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dense = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for (name, _), found, wide in zip(model.named_parameters(), gradients, dense, strict=True):
        torch.testing.assert_close(found, narrow(wide, name, gone), rtol=1e-10, atol=1e-10)


def test_a_graph_that_loses_nothing_stays_as_it_is() -> None:
    analysis = analysed(heads, **QKV)
    written = rewrite(analysis, np.zeros(len(analysis.partition.component), bool))
    assert str(written.graph) == str(analysis.program.graph)
    assert not written.constants


def test_the_scale_of_attention_stays_dense() -> None:
    analysis = analysed(heads, **QKV)
    written = rewrite(analysis, dead_labels(analysis, removal(analysis, KEYS)))
    (node,) = [n for n in written.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert node.kwargs["scale"] == 4**-0.5


def test_nodes_remember_their_dense_twins() -> None:
    analysis = analysed(CASES["linear"][0], **W)
    written = rewrite(analysis, dead_labels(analysis, removal(analysis, BOTH)))
    dense = list(analysis.program.graph.nodes)
    assert [n.meta["dense"] for n in written.graph.nodes] == dense


def test_rows_of_unequal_width_are_refused_with_the_line() -> None:
    analysis = analysed(heads, **QKV)
    gone = removal(analysis, {n: {0: [0, 1, 5]} for n in "qk"})
    with pytest.raises(
        RewriteError, match=r"aten\.unflatten.*tiny\.py.*rows keep different counts \(2 to 3\)"
    ):
        rewrite(analysis, dead_labels(analysis, gone))


TORN = {
    "one side": {"a": {0: [1]}},
    "other indices": {"a": {0: [1]}, "b": {1: [2]}},
    "an output": {"b": {0: [0]}},
    "an input": {"a": {1: [0]}},
}


@pytest.mark.parametrize("indices", TORN.values(), ids=TORN)
def test_removals_that_tear_units_are_refused(indices: Indices) -> None:
    analysis = analysed(CASES["linear"][0], **W)
    with pytest.raises(PlanError, match="ties more entries together than the plan removes"):
        dead_labels(analysis, removal(analysis, indices))


def test_labels_of_removed_entries_die_with_all_that_follow() -> None:
    analysis = analysed(heads, **QKV)
    dead = dead_labels(analysis, removal(analysis, {n: {0: [0, 1, 2, 3]} for n in "qk"}))
    assert dead[analysis.labels["q"][0]].tolist() == [True] * 4 + [False] * 4
    assert not dead[analysis.labels["v"][0]].any()
    assert not dead_labels(analysis, Removal()).any()
