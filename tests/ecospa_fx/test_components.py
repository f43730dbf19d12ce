"""Implications between components, and what whole experts take along."""

import numpy as np

from ecospa_fx.components import held_experts, taken_along

EXPERTS = np.array([True, True, False, False, False])
COARSE, FINE = np.array([0, 1, 0, 1]), np.array([2, 3, 4, 4])


def dead(*numbers: int) -> np.ndarray:
    found = np.zeros(5, bool)
    found[list(numbers)] = True
    return found


def test_an_expert_takes_along_what_it_alone_holds() -> None:
    assert taken_along(dead(0), EXPERTS, COARSE, FINE).tolist() == dead(0, 2).tolist()


def test_what_experts_share_goes_with_the_last_of_them() -> None:
    assert taken_along(dead(0, 1), EXPERTS, COARSE, FINE).all()


def test_heads_take_nothing_along() -> None:
    none = np.zeros(5, bool)
    assert taken_along(dead(0), none, COARSE, FINE).tolist() == dead(0).tolist()


def test_an_expert_stays_where_what_it_alone_holds_has_to() -> None:
    pin = np.array([-1, -1, 7, -1, 8])
    assert held_experts(pin, EXPERTS, COARSE, FINE).tolist() == [7, -1, 7, -1, 8]


def test_an_expert_stays_where_a_row_of_another_stack_does() -> None:
    coarse, fine = np.array([0, 1, 2, 3]), np.array([4, 5, 4, 5])
    experts = np.array([True, True, False, False, False, False])
    pin = np.array([-1, -1, 3, -1, -1, -1])
    assert held_experts(pin, experts, coarse, fine).tolist() == [3, -1, 3, -1, -1, -1]
