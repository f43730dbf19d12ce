"""Unlift: writes are followed node by node; what cannot be is traced anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import ecospa_fx
from ecospa_fx.passes import unlift as module
from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.patches import quiet
from ecospa_fx.passes.unlift import unlift
from ecospa_fx.testing import assert_equals_masked

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Written(nn.Module):
    """Hidden values are written; ``scaled``, under another gradient mode than they are made."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        memory = hidden * 2
        memory[1] = hidden[0]
        memory[2:].add_(memory[:1])
        with torch.set_grad_enabled(not self.scaled):
            memory[:1].mul_(2)
        out: Tensor = self.down(memory)
        return out


@pytest.fixture
def traced_anew(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Programs that are traced a second time."""
    seen: list[object] = []
    original = module.functional
    monkeypatch.setattr(module, "functional", lambda exported: (seen.append(exported), original(exported))[1])
    return seen


@pytest.mark.parametrize("scaled", [False, True])
def test_no_write_is_left(scaled: bool, traced_anew: list[object]) -> None:
    model = Written(scaled).double()
    exported = export(model, (X,), dynamic_shapes={"x": {0: Dim.AUTO}})
    with quiet():
        graph, constants = unlift(exported, model, False)
    assert not any(writes(n) for n in graph.nodes)
    assert {str(n.target) for n in graph.nodes if n.op == "get_attr"} >= {"up.weight", "down.bias"}
    assert not set(constants) & set(dict(model.named_parameters()))
    assert len(traced_anew) == scaled


def test_hidden_units_go_from_what_is_written(traced_anew: list[object]) -> None:
    compiled = ecospa_fx.compile(Written().double(), args=(X,))
    assert {c.kind: c.num_units for c in compiled.couplings} == {"lowrank": 8}
    assert_equals_masked(compiled, torch.randn(7, 6, dtype=torch.float64))
    assert not traced_anew
