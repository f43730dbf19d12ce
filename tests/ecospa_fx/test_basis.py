"""Where the units of couples lie in weights, and new values of these."""

import torch
from torch import nn

import ecospa_fx
from ecospa_fx.basis import Block, Field, Turn, fields


def model() -> ecospa_fx.CompiledModel:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    return ecospa_fx.compile(block, args=(torch.randn(2, 3),))


def test_all_places_of_a_couple() -> None:
    found, odd = fields(model().couplings, ("lowrank",))
    blocks = (Block("0.weight", 0, 0, "out"), Block("0.bias", 0, 0, "out"), Block("1.weight", 1, 0, "in"))
    assert found == [Field("lowrank", 4, blocks)]
    assert not odd


def test_other_kinds_are_left_out() -> None:
    assert fields(model().couplings, ("vo",)) == ([], {})


def test_units_that_lie_apart_are_named() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(torch.cat([y[:, 2:], y[:, :2]], 1))

    compiled = ecospa_fx.compile(Halves(), args=(torch.randn(2, 3),))
    found, odd = fields(compiled.couplings, ("lowrank",))
    assert not found
    assert set(odd.values()) == {"its units do not lie side by side in all its weights"}


def test_values_go_into_the_same_parameters() -> None:
    compiled = model()
    parameters = dict(compiled.named_parameters())
    before = parameters["0.bias"]
    Turn({"0.bias": torch.ones(4)}, ("lowrank",)).apply(parameters)
    assert parameters["0.bias"] is before
    assert torch.equal(before, torch.ones(4))
    assert (
        str(Turn({}, ("a",), {"b": "why"}))
        == "the units of 1 couples in a balanced basis; 1 left as they are"
    )
