"""Blocks of labels of which row 0 stands for every row."""

import numpy as np

from ecospa_fx.labels import LabelSpace, Reason, Tag
from ecospa_fx.stacks import Stack


def components(space: LabelSpace, *blocks: np.ndarray) -> list[list[int]]:
    found = space.resolve().component
    return [found[b].tolist() for b in blocks]


def routed(space: LabelSpace, *blocks: np.ndarray) -> None:
    for block in blocks:
        space.stacks.route(block)


def test_places_lie_along_two_axes_of_a_tensor() -> None:
    stack, shape = Stack(1, 3), (5, 2, 7, 3)
    assert stack.places(shape) == 6
    spread = stack.spread(np.arange(6), shape)
    assert spread.shape == (1, 2, 1, 3)
    assert spread[0, 1, 0].tolist() == [3, 4, 5]


def test_a_union_between_routed_rows_holds_in_every_row() -> None:
    space = LabelSpace()
    a, b = space.stack(3, 2), space.stack(3, 2)
    routed(space, a, b)
    space.union(a[0], b[0])
    found = components(space, a, b)
    assert found[0] == found[1]
    assert len(np.unique(found[0])) == 6


def test_rows_that_are_not_routed_stay_as_they_are() -> None:
    space = LabelSpace()
    a, b = space.stack(3, 2), space.stack(3, 2)
    space.union(a[0], b[0])
    found = components(space, a, b)
    assert found[0][0] == found[1][0]
    assert not set(found[0][1]) & set(found[1][1])


def test_rows_agree_where_row_0_meets_a_label_of_no_stack() -> None:
    space = LabelSpace()
    a, plain = space.stack(3, 2), space.fresh((2,))
    routed(space, a)
    space.union(a[0], plain)
    found = components(space, a, plain)
    assert found[0] == [found[1]] * 3


def test_rows_agree_where_stacks_of_other_heights_meet() -> None:
    space = LabelSpace()
    a, b = space.stack(3, 2), space.stack(4, 2)
    routed(space, a, b)
    space.union(a[0], b[0])
    found = components(space, a, b)
    assert found[0] + found[1] == [found[0][0]] * 7


def test_a_pin_and_a_tag_on_row_0_count_for_all_rows() -> None:
    space = LabelSpace()
    a = space.stack(3, 2)
    routed(space, a)
    space.pin(a[0, :1], Reason("why"))
    space.tag(a[0, 1:], Tag.CONV)
    partition = space.resolve()
    assert (partition.pin[partition.component[a[:, 0]]] == 0).all()
    assert (partition.pin[partition.component[a[:, 1]]] < 0).all()
    assert (partition.label_tags[a[:, 1]] == Tag.CONV).all()


def test_every_row_is_known_only_for_what_stands_for_columns() -> None:
    space = LabelSpace()
    a, plain = space.stack(3, 4), space.fresh((4,))
    assert space.stacks.every_row(a[0]) is None
    routed(space, a)
    every = space.stacks.every_row(a[:1, 1:3])
    assert every is not None
    assert (every[:, 0] == a[:, 1:3]).all()
    assert space.stacks.every_row(a[1]) is None
    assert space.stacks.every_row(plain) is None
    assert space.stacks.holds(a)
    assert not space.stacks.holds(plain)
