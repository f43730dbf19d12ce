"""Check: which parameters are plain, and whether a capture computes what the model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ecospa_fx.errors import BackwardError, CaptureError
from ecospa_fx.passes.capture import capture
from ecospa_fx.passes.check import check_capture, check_supported, tolerance, without_dropout
from ecospa_fx.program import Program
from tests.models.snapshot import untouched

X = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
HALF, SINGLE = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.layer(self.norm(x)), 0.5, self.training)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5 if self.training else 0.0)


@pytest.fixture(name="model")
def _model() -> Dropping:
    return Dropping()


def doubled(program: Program) -> Program:
    """The same program, with outputs that are twice as large."""
    graph = fx.Graph()
    (out,) = graph.graph_copy(program.graph, {})
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (out, 2)),))
    return replace(program, graph=graph)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_capture_is_compared(model: Dropping, training: bool, deterministic: bool) -> None:
    model.train(training)
    if deterministic:
        model.norm.eval()
    program = capture(model, {"x": X})
    with untouched(model):
        check_capture(model, program, {"x": X}, deterministic)
        with pytest.raises(CaptureError, match=r"Dropping computes something else .*check=False"):
            check_capture(model, doubled(program), {"x": X}, deterministic)


@pytest.mark.parametrize("statistics", [False, True])
def test_dropout_is_left_out(model: Dropping, statistics: bool) -> None:
    model.norm.train(statistics)
    program = capture(model, {"x": X})
    before = str(program.graph)
    plain = without_dropout(program.graph)
    assert str(program.graph) == before
    pairs = list(zip(plain.nodes, program.graph.nodes, strict=True))
    changed = [a.name for a, b in pairs if f"{a.args} {a.kwargs}" != f"{b.args} {b.kwargs}"]
    assert [n.removeprefix("native_") for n in changed] == ["dropout", "scaled_dot_product_attention"]


TOLERANCES = {"nothing": ([], 1e-4), "single": ([SINGLE], 1e-4), "mixed": ([SINGLE, HALF], 5e-2)}


@pytest.mark.parametrize(("tensors", "expected"), TOLERANCES.values(), ids=TOLERANCES)
def test_the_coarsest_dtype_counts(tensors: list[Tensor], expected: float) -> None:
    assert tolerance(tensors) == expected


PLAIN: dict[str, Callable[[], Tensor]] = {
    "single": lambda: torch.ones(2, 2),
    "half": lambda: torch.ones(2, 2, dtype=torch.bfloat16),
    "complex": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "meta": lambda: torch.ones(2, 2, device="meta"),
}
ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "integers": (lambda: torch.ones(2, 2, dtype=torch.uint8), r"p \(quantised, torch\.uint8\)"),
    "sparse": (lambda: torch.eye(2).to_sparse_coo(), r"p \(sparse layout torch\.sparse_coo\)"),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_plain_parameters(make: Callable[[], Tensor]) -> None:
    check_supported(nn.ParameterDict({"p": nn.Parameter(make())}))


@pytest.mark.parametrize(("make", "words"), ODD.values(), ids=ODD)
def test_odd_parameters(make: Callable[[], Tensor], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        check_supported(nn.ParameterDict({"p": nn.Parameter(make(), requires_grad=False)}))


def test_many_odd_parameters_are_counted() -> None:
    odd = [nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False) for _ in range(11)]
    with pytest.raises(CaptureError, match="and 3 more; dequantise"):
        check_supported(nn.ParameterList(odd))


class Stopped(nn.Module):
    """One of two ways to the same weights has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        found: Tensor = y + self.second(y.detach().exp())
        return found


def test_gradients_are_compared_by_value() -> None:
    model = Stopped()
    program = capture(model, {"x": X})
    graph = fx.Graph()
    (out,) = graph.graph_copy(program.graph, {})
    graph.output((out,))
    for node in [n for n in graph.nodes if "detach" in str(n.target)]:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    with untouched(model):
        check_capture(model, program, {"x": X}, deterministic=False)
        with pytest.raises(BackwardError, match=r"would not train first\.weight, first\.bias as"):
            check_capture(model, replace(program, graph=graph), {"x": X}, deterministic=False)
        with torch.no_grad():
            check_capture(model, replace(program, graph=graph), {"x": X}, deterministic=False)
