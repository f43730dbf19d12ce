"""Recurrent layers as parts of a model: what feeds them, their units, and what reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.testing import assert_equals_masked


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.before, self.cells = nn.Linear(4, 6), kind(6, 5, batch_first=True, **options)
        given = options.get("proj_size", 5) * (1 + options.get("bidirectional", False))
        self.after = nn.Linear(given, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.cells(self.before(x).relu())[0])
        return out


class Steps(nn.Module):
    """Cells that are called one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.gru = nn.Linear(4, 6), nn.LSTMCell(6, 5), nn.GRUCell(5, 7)
        self.after = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 5)
        g = x.new_zeros(len(x), 7)
        for step in self.before(x).relu().unbind(1):
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
        out: Tensor = self.after(g)
        return out


@pytest.mark.parametrize(
    ("kind", "options", "units"),
    [
        (nn.LSTM, {}, [6, 5]),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}, [6, 5, 5, 5, 5]),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}, [6, 5]),
        (nn.LSTM, {"proj_size": 3}, [6, 3]),
    ],
    ids=["lstm", "gru", "rnn", "projected"],
)
def test_units_of_cells_go(kind: Any, options: dict[str, Any], units: list[int]) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options).double()
    compiled = ecospa_fx.compile(model, args=(torch.randn(2, 4, 4).double(),))
    assert [c.num_units for c in compiled.couplings] == units
    assert_equals_masked(compiled, torch.randn(3, 7, 4).double(), tolerance=1e-9)


def test_cells_step_by_step() -> None:
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(Steps().double(), args=(torch.randn(2, 3, 4).double(),))
    assert [c.num_units for c in compiled.couplings] == [6, 5, 7]
    assert_equals_masked(compiled, torch.randn(5, 3, 4).double(), tolerance=1e-9)
