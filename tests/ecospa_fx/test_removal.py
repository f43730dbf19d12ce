"""A removal: masks, shapes, JSON there and back, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from ecospa_fx.errors import PlanError
from ecospa_fx.removal import Removal
from ecospa_fx.stacks import Stack

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


STACKED = Removal({"w": (2, 3, 4)}, {"w": {2: np.array([0, 1, 6, 7, 9, 11])}}, {"w": Stack(1, 2)})


def test_matrices_along_any_axis_choose_for_themselves() -> None:
    rows = [[False, False, True, True], [True, True, False, False], [True, False, True, False]]
    assert STACKED.mask("w", (2, 3, 4)).tolist() == [rows, rows]
    assert STACKED.shape("w", (2, 3, 4)) == (2, 3, 2)
    assert STACKED.length("w", 2, (2, 3, 4)) == 12
    assert STACKED.length("w", 1, (2, 3, 4)) == 3


def test_stacks_there_and_back() -> None:
    data = json.loads(json.dumps(STACKED.to_dict()))
    assert data["stacked"] == {"w": [1, 2]}
    again = Removal.from_dict(data)
    assert again.stacked == STACKED.stacked
    assert torch.equal(again.mask("w", (2, 3, 4)), STACKED.mask("w", (2, 3, 4)))


def test_matrices_along_axis_0_are_written_as_by_earlier_versions() -> None:
    data = {"shapes": {"w": [2, 3]}, "removed": {"w": {"1": [0, 5]}}, "stacked": {"w": 1}}
    assert Removal.from_dict(data).stacked == {"w": Stack(0, 1)}
    assert Removal.from_dict(data).to_dict() == data


@pytest.mark.parametrize(
    "axes", [0, -1, 3, "1", True, [1], [2, 1], [1, 1], [-1, 2], [1, 3], [0.0, 1], [0, 1, 2]]
)
def test_stacks_that_do_not_exist(axes: object) -> None:
    data = {"shapes": {"w": [2, 3, 4]}, "removed": {"w": {"2": [0]}}, "stacked": {"w": axes}}
    with pytest.raises(PlanError, match="stacks that do not exist: 'w'"):
        Removal.from_dict(data)


def test_matrices_that_keep_unequal_counts_are_refused() -> None:
    data = {"shapes": {"w": [2, 3, 4]}, "removed": {"w": {"2": [0, 1]}}, "stacked": {"w": [1, 2]}}
    with pytest.raises(PlanError, match="leaves 2 to 4 indices in the matrices of 'w' along axis 2"):
        Removal.from_dict(data)


@pytest.mark.parametrize(("indices", "axis", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(indices: list[int], axis: str, words: str) -> None:
    data: dict[str, Any] = {"shapes": {"w": [4, 3]}, "removed": {"w": {axis: indices}}}
    with pytest.raises(PlanError, match=words):
        Removal.from_dict(data)


def test_a_parameter_without_a_shape_is_refused() -> None:
    with pytest.raises(PlanError, match="'w' without giving its shape"):
        Removal.from_dict({"shapes": {}, "removed": {"w": {"0": [1]}}})
