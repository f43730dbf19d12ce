"""Counts, against parameters that really shrink."""

import numpy as np
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.census import Census, rows_per_unit, units_of_kinds
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.ladder import normalised
from ecospa_fx.removal import Removal


@pytest.fixture(scope="module")
def chain() -> CompiledModel:
    """Two couples that cross in one weight: 9 low-rank units, 12 hidden ones."""
    layers = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 5))
    return ecospa_fx.compile(layers, args=(torch.randn(3, 7),))


def census(model: CompiledModel, removal: Removal | None = None, *kinds: str) -> Census:
    chosen = kinds or ("lowrank", "ffn")
    return Census(model.couplings, model.analysis.partition, removal or Removal(), chosen)


def test_dense_counts(chain: CompiledModel) -> None:
    counts = census(chain)
    assert counts.params(counts.dead) == sum(p.numel() for p in chain.parameters())
    assert counts.params(counts.gone) == 5  # the last bias
    assert len(counts.units) == 9 + 12


def test_counts_of_two_axes_multiply(chain: CompiledModel) -> None:
    counts = census(chain)
    dead = counts.dead.copy()
    by_kind = {c.kind: c.units for c in chain.couplings}
    dead[by_kind["lowrank"][:4]] = True
    dead[by_kind["ffn"][:2]] = True
    dead = counts.close(dead)
    left = (7 + 1) * 5 + (5 + 1) * 10 + 10 * 5 + 5
    assert counts.params(dead) == left
    removal = counts.removal_of(dead)
    assert sum(int(np.prod(removal.shape(n, s))) for n, s in chain.couplings.shapes.items()) == left
    again = census(chain, removal)
    assert again.params(again.dead) == left
    assert (again.dead == dead).all()


def test_cost_of_a_unit_is_what_goes_with_it_alone(chain: CompiledModel) -> None:
    counts = census(chain)
    cost = counts.unit_params(counts.dead)
    by_kind = {c.kind: c.units for c in chain.couplings}
    assert cost[by_kind["lowrank"]].tolist() == [7 + 1 + 12] * 9
    assert cost[by_kind["ffn"]].tolist() == [9 + 1 + 5] * 12


def test_couples_out_of_play_hold_nothing(chain: CompiledModel) -> None:
    counts = census(chain, None, "ffn")
    assert counts.coupled(counts.dead) == 12 * (9 + 1 + 5)
    assert not units_of_kinds(chain.couplings, ("conv",)).any()


def test_shares_of_groups() -> None:
    shares = normalised(np.array([0, 0, 1, 1, 2]), np.array([1.0, 3.0, -1.0, 1.0, 0.0]))
    assert shares.tolist() == [0.25, 0.75, 0.0, 1.0, 1.0]


def test_rows_of_a_unit() -> None:
    class Rotary(nn.Module):
        """Queries and keys in one weight, rotated or not."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
            q, k = (t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin() for t in (q, k))
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(-2))

    model = ecospa_fx.compile(Rotary(), args=(torch.randn(2, 7, 8),))
    graph = model.couplings
    rows = rows_per_unit(graph)
    found = {c.kind: int(rows[graph.segment_of[c.units[0]]]) for c in graph}
    assert found == {"qk": 2, "vo": 1}
