"""The masked model: widening and narrowing, and how differences are measured."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecospa_fx.masked import Difference, call_masked, floats, largest, narrow, repeatable, widen
from ecospa_fx.removal import Removal
from tests.models.snapshot import untouched

GONE = Removal({"weight": (4, 3)}, {"weight": {0: np.array([1, 3]), 1: np.array([0])}})


def test_widening_undoes_narrowing() -> None:
    dense = torch.randn(4, 3)
    small = narrow(dense, "weight", GONE)
    assert torch.equal(small, dense[[0, 2]][:, [1, 2]])
    assert torch.equal(widen(small, "weight", (4, 3), GONE), dense * GONE.mask("weight", (4, 3)))
    assert torch.equal(widen(dense, "other", (4, 3), GONE), dense)


def test_gradients_reach_the_small_tensor() -> None:
    small = torch.randn(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad((widen(small, "weight", (4, 3), GONE) * 3).sum(), small)
    assert torch.equal(gradient, torch.full((2, 2), 3.0))


def test_the_original_code_runs_on_masked_tensors() -> None:
    model, x = nn.Linear(3, 4, bias=False), torch.randn(2, 3)
    expected = x @ (model.weight * GONE.mask("weight", (4, 3))).T
    small = {"weight": narrow(model.weight.detach(), "weight", GONE)}
    with untouched(model):
        found = call_masked(model, small, GONE, {"weight": (4, 3)}, {"input": x})
    assert torch.allclose(found, expected)


def test_a_module_in_two_places_keeps_its_own_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    model.append(model[0])
    model.append(nn.Linear(3, 3, bias=False))
    model[3].weight = model[0].weight
    x, half = torch.randn(2, 3), {"0.weight": model[0].weight.detach() / 2}
    with untouched(model):
        found = call_masked(model, half, Removal({}, {}), {"0.weight": (3, 3)}, {"input": x})
    assert torch.allclose(found, model(x) / 8)


INF, NAN = math.inf, math.nan
PAIRS: dict[str, tuple[list[float], list[float], tuple[float, float]]] = {
    "equal": ([1, -2], [1, -2], (0, 0)),
    "apart": ([1, -4], [1, -3], (1, 0.25)),
    "nothing": ([], [], (0, 0)),
    "zeros": ([0, 0], [0, 0.5], (0.5, 0.5)),
    "both infinite": ([INF, 2], [INF, 1], (1, 0.5)),
    "both nan": ([NAN, 2], [NAN, 2], (0, 0)),
    "one nan": ([NAN, 2], [1, 2], (INF, INF)),
}


@pytest.mark.parametrize(("a", "b", "expected"), PAIRS.values(), ids=PAIRS)
def test_largest_difference(a: list[float], b: list[float], expected: tuple[float, float]) -> None:
    assert largest([(torch.tensor(a), torch.tensor(b))]) == expected


def test_infinities_of_two_signs_differ_beyond_measure() -> None:
    assert min(largest([(torch.tensor([INF, 1.0]), torch.tensor([-INF, 1.0]))])) > 1e300


def test_other_shapes_differ_without_end() -> None:
    assert largest([(torch.ones(2), torch.ones(3))]) == (INF, INF)


def test_within_and_text() -> None:
    found = Difference(0.5, 1e-3, 0.25, 2e-3, "a.weight")
    assert found.within(2e-3)
    assert not found.within(1e-3)
    assert not Difference(NAN, NAN).within(1.0)
    assert str(found) == (
        "outputs differ by at most 5.00e-01 (relative 1.00e-03), "
        "gradients by 2.50e-01 (relative 2.00e-03) at a.weight"
    )


def test_only_numbers_with_a_point_count() -> None:
    x = torch.ones(2)
    found: list[Tensor] = floats({"a": x, "n": x.long(), "b": [x.bool(), x.to(torch.complex64)], "t": "text"})
    assert [t.dtype for t in found] == [torch.float32, torch.complex64]


def test_random_numbers_and_buffers_are_put_back() -> None:
    model = nn.BatchNorm1d(2)
    draws = []
    for _ in range(2):
        with untouched(model), repeatable(model):
            model(torch.randn(3, 2))
            draws.append(torch.rand(1))
    assert torch.equal(*draws)


def test_a_buffer_that_only_was_read_serves_backward() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    model = Scaled()
    with repeatable(model):
        out = model(torch.ones(2, 3))
    out.sum().backward()
    assert torch.equal(model.inner.bias.grad, torch.full((3,), 4.0))
