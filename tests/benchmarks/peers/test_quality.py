"""How many hidden units another library is asked to take."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.peers.quality import hidden_ratio


def test_hidden_units_make_up_for_the_heads_that_stay() -> None:
    parts = {"attention_proj": nn.Linear(4, 4, bias=False), "mlp_proj": nn.Linear(4, 12, bias=False)}
    model = nn.ModuleDict({**parts, "head": nn.Linear(4, 100)})
    assert hidden_ratio(model, 0.3, "_proj", "mlp") == pytest.approx(0.3 * (16 + 48) / 48)
