"""Which couples may take another basis, told by what their units pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.basis import fields
from ecospa_fx.passes.mixable import mixable

X = torch.randn(3, 5, 8)
Way = Callable[["LowRank", Tensor], Tensor]


class LowRank(nn.Module):
    """Two matrices in a row, with something in between."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.memory, self.way = nn.Parameter(torch.randn(1, 4)), way

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.way(self, x))


def asked(way: Way) -> tuple[int, set[str]]:
    """How many couples may be mixed, and why others may not."""
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(LowRank(way), args=(X,))
    found, odd = fields(compiled.couplings, ("vo", "lowrank", "ffn"))
    refused = mixable(compiled.analysis, found)
    return len(found) - len(refused), {*odd.values(), *refused.values()}


FINE: dict[str, Way] = {
    "nothing": lambda m, x: m.a(x),
    "layout": lambda m, x: (
        m.a(x).unflatten(-1, (1, 4)).transpose(0, 1).flatten(2).transpose(0, 1).contiguous()
    ),
    "a sum of two": lambda m, x: m.a(x) + m.c(x),
    "mixed over tokens": lambda m, x: torch.softmax(x @ x.mT, -1) @ m.a(x),
    "joined tokens": lambda m, x: torch.cat([m.a(x), m.c(x)], 1),
    "learned values beside": lambda m, x: torch.cat([m.memory.expand(len(x), 1, 4), m.a(x)], 1),
}
ODD: dict[str, Way] = {
    "an activation function": lambda m, x: torch.tanh(m.a(x)),
    "a product of two": lambda m, x: m.a(x) * m.c(x),
    "a vector of scales": lambda m, x: m.a(x) * m.memory,
    "half of another": lambda m, x: torch.add(m.a(x), m.c(x), alpha=0.5),
    "a norm": lambda m, x: F.layer_norm(m.a(x), (4,)),
    "fixed values beside": lambda m, x: torch.cat([x[:, :1, :4], m.a(x)], 1),
    "dropout": lambda m, x: F.dropout(m.a(x), 0.1, m.training),
    "half of the units": lambda m, x: torch.cat([m.a(x)[..., 2:], m.a(x)[..., :2]], -1),
}


@pytest.mark.parametrize("way", FINE)
def test_linear_ways_that_treat_all_units_alike(way: str) -> None:
    assert asked(FINE[way]) == (1, set())


@pytest.mark.parametrize("way", ODD)
def test_ways_that_do_not(way: str) -> None:
    assert asked(ODD[way])[0] == 0


@pytest.mark.parametrize("way", FINE)
def test_what_is_found_mixable_computes_the_same_in_another_basis(way: str) -> None:
    torch.manual_seed(0)
    x = X.double()
    compiled = ecospa_fx.compile(LowRank(FINE[way]).double(), args=(x,))
    before = compiled(x)
    found = compiled.balance([x], kinds=("vo", "lowrank", "ffn"))
    assert len(found.turned) == 1
    torch.testing.assert_close(compiled(x), before, rtol=1e-9, atol=1e-9)


def test_the_reason_names_the_operator() -> None:
    assert asked(ODD["an activation function"])[1] == {"its units pass aten.tanh.default"}
