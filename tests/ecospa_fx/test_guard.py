"""Sizes that the capture had to fix: the message names the user's own argument."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.errors import InputError, SizeError
from ecospa_fx.guard import value_guard


class Sum(nn.Module):
    """Takes arguments in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x: Tensor, /, bias: dict[str, list[Tensor]], *rest: Tensor, scale: Tensor) -> Tensor:
        return (self.linear(x) + bias["q"][0] + rest[0]) * scale


def call(
    x: int = 10, bias: int = 10, rest: int = 10, scale: int = 10
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.ones(5, x), {"q": [torch.ones(bias)]}, torch.ones(rest)), {"scale": torch.ones(scale)}


NAMES = {"x": "argument 0", "bias": r"argument 1\['q'\]\[0\]", "rest": "argument 2", "scale": "scale"}


@pytest.mark.parametrize(("argument", "name"), NAMES.items(), ids=NAMES)
def test_another_size_is_named(argument: str, name: str) -> None:
    args, kwargs = call()
    compiled = ecospa_fx.compile(Sum(), args, kwargs)
    args, kwargs = call(**{argument: 11})
    with pytest.raises(SizeError, match=f"{name}['\"] has size 11 .*fix size 10"):
        compiled(*args, **kwargs)


def test_values_that_the_graph_holds_are_compared() -> None:
    def sizes(leaves: list[Any]) -> None:
        assert len(leaves) == 3

    inputs = {"pair": (torch.ones(2), torch.ones(3)), "grid": torch.tensor([2, 3])}
    assert value_guard(sizes, inputs, frozenset()) is sizes
    guard = value_guard(sizes, inputs, frozenset({"grid"}))
    guard([torch.zeros(2), torch.zeros(3), torch.tensor([2, 3])])
    with pytest.raises(InputError, match="'grid' has other values"):
        guard([torch.ones(2), torch.ones(3), torch.tensor([3, 2])])
