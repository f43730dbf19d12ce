"""Layouts: the survivors of a value form a box, or the removal is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import Ids, LabelArray, Value
from ecospa_fx.layout import Layout, layout_of
from ecospa_fx.oracles.trial import restrict

HEADS, DIMS = 3, 4
HEAD_IDS = np.arange(HEADS).reshape(1, HEADS, 1, 1)
DIM_IDS = HEADS + np.arange(HEADS * DIMS).reshape(1, HEADS, 1, DIMS)
JOINT = Value((2, HEADS, 5, DIMS), (False,) * 4, (LabelArray(HEAD_IDS), LabelArray(DIM_IDS)))


def dead_of(heads: list[int], dims: list[list[int]]) -> Ids:
    dead = np.zeros(HEADS + HEADS * DIMS, bool)
    for head, gone in enumerate(dims):
        dead[DIM_IDS[0, head, 0, gone]] = True
    for head in heads:
        dead[head] = True
        dead[DIM_IDS[0, head, 0]] = True
    return dead


def survivors(value: Value, dead: Ids) -> list[float]:
    """Entries with no dead label, in row-major order."""
    alive = np.ones(value.shape, bool)
    for array in value.arrays:
        alive &= np.broadcast_to(~dead[array.ids], value.shape)
    return np.arange(alive.size, dtype=float).reshape(value.shape)[alive].tolist()


def kept(value: Value, layout: Layout) -> list[float]:
    dense = torch.arange(float(np.prod(value.shape))).reshape(value.shape)
    return restrict(dense, layout).flatten().tolist()


@given(st.integers(1, DIMS), st.sets(st.integers(0, HEADS - 1), max_size=HEADS - 1), st.randoms())
def test_a_box_holds_exactly_the_survivors(width: int, heads: set[int], random: object) -> None:
    gone = [random.sample(range(DIMS), DIMS - width) for _ in range(HEADS)]  # type: ignore[attr-defined]
    dead = dead_of(sorted(heads), gone)
    layout = layout_of(JOINT, dead)
    assert layout.shape == (2, HEADS - len(heads), 5, width)
    assert kept(JOINT, layout) == survivors(JOINT, dead)


def test_equal_rows_are_selected_once_for_all() -> None:
    layout = layout_of(JOINT, dead_of([], [[1], [1], [1]]))
    assert layout.index[3].shape == (1, 1, 1, DIMS - 1)
    assert layout.index[3].ravel().tolist() == [0, 2, 3]


def test_unequal_rows_are_selected_one_by_one() -> None:
    layout = layout_of(JOINT, dead_of([], [[1], [0], [3]]))
    assert layout.index[3].shape == (1, HEADS, 1, DIMS - 1)
    assert (layout.changed(1), layout.changed(3)) == (False, True)


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(RewriteError, match=r"rows keep different counts \(3 to 4\)"):
        layout_of(JOINT, dead_of([], [[1], [], [3]]))


def test_an_empty_row_beside_full_ones_is_refused() -> None:
    dead = dead_of([0], [])
    dead[0] = False  # the head as a whole is said to stay
    with pytest.raises(RewriteError, match="rows keep different counts"):
        layout_of(JOINT, dead)


def test_scattered_survivors_of_two_full_axes_are_refused() -> None:
    arrays = (np.array([[0], [1]]), np.array([[2, 3]]), np.array([[4, 5], [6, 7]]))
    twice = Value((2, 2), (False,) * 2, tuple(LabelArray(ids) for ids in arrays))
    dead = np.zeros(8, bool)
    dead[[4, 7]] = True
    with pytest.raises(RewriteError, match="do not form a box"):
        layout_of(twice, dead)


def test_nothing_dead_keeps_everything() -> None:
    layout = layout_of(JOINT, dead_of([], []))
    assert layout.shape == layout.dense == JOINT.shape
    assert not any(layout.changed(a) for a in range(4))


def test_an_unlabelled_axis_is_told_by_its_own_indices() -> None:
    layout = layout_of(JOINT, dead_of([1], []))
    assert layout.at(2).shape == (1, 1, 5, 1)
    assert layout.at(1).ravel().tolist() == [0, 2]
