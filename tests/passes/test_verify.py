"""Verify: two models that differ by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecospa_fx.masked import Difference
from ecospa_fx.passes.verify import verify
from ecospa_fx.removal import Removal
from tests.models.snapshot import untouched

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def difference(run: Callable[[Scale], Any], removal: Removal | None = None) -> Difference:
    model = Scale()
    return verify(lambda: run(model), model, {"x": X}, removal or Removal(), {"w": (2,)})


def test_equal_models_do_not_differ() -> None:
    assert difference(lambda m: m(X)) == Difference()


def test_outputs_that_differ() -> None:
    found = difference(lambda m: m(X) + 0.5)
    assert (found.output, found.output_relative, found.gradient) == (0.5, 0.5 / 12, 0.0)


def test_gradients_that_differ() -> None:
    found = difference(lambda m: m(X) + (m.w - m.w.detach()))
    assert found.output == 0
    assert found.gradient > 0.1
    assert found.gradient_of == "w"
    assert not found.within(1e-3)
    assert "at w" in str(found)


@pytest.mark.parametrize("run", [lambda m: (m(X), m(X)), lambda m: m(X)[:1], lambda m: ()])
def test_outputs_of_another_kind(run: Callable[[Scale], Any]) -> None:
    assert difference(run).output == float("inf")


def test_nan_is_no_small_difference() -> None:
    assert difference(lambda m: m(X) * float("nan")).output == float("inf")


def test_what_is_gone_is_masked() -> None:
    gone = Removal({"w": (2,)}, {"w": {0: np.array([0])}})
    small = Scale()
    small.w = nn.Parameter(torch.tensor([3.0]))
    found = verify(
        lambda: torch.cat((X[:, :1] * 0, X[:, 1:] * small.w), 1), small, {"x": X}, gone, {"w": (2,)}
    )
    assert found == Difference()


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    with untouched(model):
        found = verify(lambda: model(X), model, {"input": X}, Removal(), shapes)
    assert found == Difference()
