"""Linear expressions."""

from __future__ import annotations

import pytest

from ecospa_fx.linear import Linear

ROW, COLUMN = Linear.place(0), Linear.place(1)
S, T = Linear(0, (("s1", 1),)), Linear(0, (("s2", 1),))


def test_arithmetic() -> None:
    assert ROW + COLUMN - ROW == COLUMN
    assert (ROW - COLUMN) * 2 == ROW + ROW - COLUMN - COLUMN
    assert (S - S).number == 0
    assert S.number is None
    assert (S + COLUMN - Linear(1)).value({"s1": 4, "@1": 2}) == 5


def test_largest_within_a_tensor() -> None:
    assert (COLUMN - ROW).largest((S, T)) == T - Linear(1)
    assert (COLUMN - ROW + S).largest((S, S)) == S + S - Linear(1)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Linear(0), True),
        (Linear(1), False),
        (-S, True),
        (S, False),
        (T - S, False),
        (Linear(-3) - S - T, True),
        (-ROW, False),
        (Linear(0, (("?s1*s2", -1),)), False),
    ],
    ids=str,
)
def test_never_positive(expression: Linear, expected: bool) -> None:
    assert expression.never_positive is expected


def test_what_is_no_size() -> None:
    with pytest.raises(TypeError, match="is no size"):
        Linear.size(True)
