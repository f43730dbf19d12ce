"""A removal: masks, shapes, JSON there and back, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from ecospa_fx.errors import PlanError
from ecospa_fx.removal import Removal

GONE = Removal({"w": (4, 3)}, {"w": {0: np.array([1, 3]), 1: np.array([0])}})


def test_masks_and_shapes() -> None:
    assert GONE.kept("w", 0, 4).tolist() == [True, False, True, False]
    assert GONE.mask("w", (4, 3)).nonzero().tolist() == [[0, 1], [0, 2], [2, 1], [2, 2]]
    assert GONE.shape("w", (4, 3)) == (2, 2)
    assert GONE.mask("other", (2, 2)).all()
    assert GONE.shape("other", (5, 6)) == (5, 6)
    assert GONE.mask("scalar", ()).equal(torch.tensor(True))


def test_json_there_and_back() -> None:
    again = Removal.from_dict(json.loads(json.dumps(GONE.to_dict())))
    assert again.to_dict() == GONE.to_dict()
    assert torch.equal(again.mask("w", (4, 3)), GONE.mask("w", (4, 3)))
    assert Removal.from_dict(Removal().to_dict()).to_dict() == Removal().to_dict()


def test_indices_are_sorted() -> None:
    data = {"shapes": {"w": [4]}, "removed": {"w": {"0": [3, 0]}}}
    assert Removal.from_dict(data).removed["w"][0].tolist() == [0, 3]


REFUSED = {
    "beyond": ([4], "0", "within axis"),
    "below": ([-1], "0", "within axis"),
    "twice": ([1, 1], "0", "each once"),
    "all": ([0, 1, 2, 3], "0", "empty"),
    "axis": ([0], "2", "names axis 2 of 'w'"),
    "negative axis": ([0], "-1", "names axis -1 of 'w'"),
}


@pytest.mark.parametrize(("indices", "axis", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(indices: list[int], axis: str, words: str) -> None:
    data: dict[str, Any] = {"shapes": {"w": [4, 3]}, "removed": {"w": {axis: indices}}}
    with pytest.raises(PlanError, match=words):
        Removal.from_dict(data)


def test_a_parameter_without_a_shape_is_refused() -> None:
    with pytest.raises(PlanError, match="'w' without giving its shape"):
        Removal.from_dict({"shapes": {}, "removed": {"w": {"0": [1]}}})
