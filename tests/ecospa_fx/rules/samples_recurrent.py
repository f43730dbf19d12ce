"""Sample calls of recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import torch

from ecospa_fx.testing import Operand, Sample, activation, constant, sample, weight

LENGTHS = torch.tensor([2, 2, 1])
X = activation(2, 5, 6, on=2)
PACKED = activation(5, 6, on=1)


def cell(gates: int, width: int, given: int = 0, inputs: int = 6, biases: bool = True) -> list[Operand]:
    """Parameters of a cell that is ``width`` wide and gives ``given``."""
    rows = gates * width
    weights = [weight(rows, inputs), weight(rows, given or width)]
    return weights + [weight(rows), weight(rows)] * biases + ([weight(given, width)] if given else [])


def layers(gates: int, width: int, count: int, directions: int) -> list[Operand]:
    """Parameters of several layers."""
    inputs = [6, *[directions * width] * (count - 1)]
    return [p for n in inputs for _ in range(directions) for p in cell(gates, width, inputs=n)]


def samples(gates: int) -> tuple[Sample, ...]:
    """Calls of the form ``input``: an LSTM has two states."""

    def state(*shape: int, **how: Any) -> Any:
        made = activation(*shape, **how) if how else constant(*shape)
        return [made, made] if gates == 4 else made

    plain = (True, 1, 0.0, False, False)
    return (
        sample(X, state(1, 2, 4), cell(gates, 4), *plain, True),
        sample(X, state(1, 5, 4), cell(gates, 4), *plain, False),
        sample(X, state(1, 2, 4, on=2), cell(gates, 4), *plain, True),
        sample(X, state(1, 2, 4), cell(gates, 4, biases=False), False, *plain[1:], True),
        sample(X, state(4, 2, 3), layers(gates, 3, 2, 2), True, 2, 0.0, False, True, True, rolls=False),
        sample(activation(2, 5, 6, on=1), state(1, 2, 4), cell(gates, 4), *plain, True),
    )


def packed(gates: int) -> tuple[Sample, ...]:
    """Calls of the form ``data``."""
    state = [constant(1, 2, 4)] * 2 if gates == 4 else constant(1, 2, 4)
    return (sample(PACKED, LENGTHS, state, cell(gates, 4), True, 1, 0.0, False, False),)


def steps(gates: int) -> tuple[Sample, ...]:
    """Calls of one cell."""
    state: Any = [activation(5, 4, on=1), activation(5, 4, on=1)] if gates == 4 else activation(5, 4, on=1)
    return (sample(PACKED, state, *cell(gates, 4)), sample(PACKED, state, *cell(gates, 4, biases=False)))


PROJECTED = sample(
    X,
    [constant(1, 2, 3), constant(1, 2, 5)],
    cell(4, 5, given=3),
    True,
    1,
    0.0,
    False,
    False,
    True,
    rolls=False,
)
NAMES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
SAMPLES = (
    {f"aten.{n}.input": samples(g) for n, g in NAMES.items()}
    | {f"aten.{n}.data": packed(g) for n, g in NAMES.items()}
    | {f"aten.{n}_cell.default": steps(g) for n, g in NAMES.items()}
)
SAMPLES["aten.lstm.input"] += (PROJECTED,)
