"""Consumers of small models: what a product is added to, and what stands in the way."""

import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.passes.consumers import Consumer, consumers

X = torch.randn(4, 5, 6)


class Block(nn.Module):
    """An MLP whose product meets something on its way out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.up, self.down, self.way = nn.Linear(6, 12), nn.Linear(12, 6), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.relu(self.up(x)))
        ways = {
            "plain": lambda: x + y,
            "after it": lambda: y + x,
            "reshaped": lambda: x.flatten(0, 1) + y.reshape(-1, 6),
            "alone": lambda: y,
            "scaled": lambda: x + 2 * y,
            "in part": lambda: torch.add(x, y, alpha=0.5),
            "turned": lambda: x.mT + y.mT,
            "broadcast": lambda: x[:1] + y,
            "read twice": lambda: (x + y) * y,
        }
        return ways[self.way]()


def found(way: str) -> Consumer:
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(Block(way), args=(X,))
    (place,) = consumers(compiled.analysis, {"down.weight": 1})
    return place


@pytest.mark.parametrize("way", ["plain", "after it", "reshaped"])
def test_what_a_product_is_added_to(way: str) -> None:
    beside = found(way).beside
    assert beside is not None
    assert beside.op == "placeholder" or way == "reshaped"


@pytest.mark.parametrize("way", ["alone", "scaled", "in part", "turned", "broadcast", "read twice"])
def test_what_is_not_added_as_it_is(way: str) -> None:
    assert found(way).beside is None


def test_the_operand_that_holds_the_inputs() -> None:
    place = found("plain")
    assert (place.weight, place.axis, place.bias, place.along) == ("down.weight", 1, "down.bias", 2)
