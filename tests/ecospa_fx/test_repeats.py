"""Repeats: the operators that stand for calls of blocks during a trace."""

from __future__ import annotations

import pytest
import torch

from ecospa_fx.repeats import TracedCall, enter, leave, like, repeat


@pytest.mark.parametrize("marker", [enter, leave])
def test_markers_hand_a_value_on(marker: object) -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y = marker(x, 0, 1)  # type: ignore[operator]
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones_like(x))


def test_what_stands_for_a_call_does_not_run() -> None:
    with pytest.raises(RuntimeError, match="stands for a call of a block"):
        repeat([torch.ones(1)], [], 0)


def test_calls_have_numbers_of_their_own() -> None:
    one, other = (TracedCall(None, torch.nn.ReLU(), "relu", ()) for _ in range(2))
    assert one.number != other.number
    assert like(torch.ones(2, 3).T)[1] == (1, 3)
