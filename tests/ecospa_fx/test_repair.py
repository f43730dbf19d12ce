"""Repairs as data: what they refuse, what they add, how they look."""

import json

import pytest
import torch
from torch import nn

from ecospa_fx.errors import RepairError
from ecospa_fx.repair import Fit, Repair

FIT = Fit("down.weight", None, 3, 100, 0.1, 0.25)


def parameters() -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.ones(2, 3))}


def test_values_are_added_in_place_and_returned() -> None:
    held = parameters()
    w = held["w"]
    before = Repair({"w": torch.full((2, 3), 0.5, dtype=torch.float64)}).apply(held)
    assert held["w"] is w
    assert torch.equal(w, torch.full((2, 3), 1.5))
    assert torch.equal(before["w"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"v": torch.zeros(2, 3)}, "does not fit 'v'"),
        ({"w": torch.zeros(2, 4)}, "does not fit 'w'"),
        ({"w": torch.full((2, 3), torch.nan)}, "'w' is not finite"),
    ],
)
def test_what_cannot_be_added(deltas: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RepairError, match=message):
        Repair(deltas).check(parameters(), {"w": (2, 3)})


def test_as_text_and_as_data() -> None:
    repair = Repair({}, (FIT,), {"conv.weight": "it is a convolution"})
    assert str(repair) == "1 weights repaired, 25% of the output error left (median); 1 left as they are"
    data = json.loads(json.dumps(repair.to_dict()))
    assert data["fits"][0]["damping"] == 0.1
    assert data["skipped"] == {"conv.weight": "it is a convolution"}
