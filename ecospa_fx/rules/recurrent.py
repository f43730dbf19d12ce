"""Recurrent layers: a hidden unit is its row in every gate, its column, and its place in the states.

With its weights and biases zero, the new content of a unit is ``tanh(0) = 0`` in an LSTM (Hochreiter and
Schmidhuber, 1997), a GRU (Cho et al., 2014) and an Elman network, so a unit that starts at zero stays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecospa_fx.labels import Ids, LabelArray, Nature, Tag, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import contract, meet
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class _Cell:
    """Names and values of the parameters of one direction of one layer; ``project`` makes it narrower."""

    w_ih: tuple[str, Value]
    w_hh: tuple[str, Value]
    biases: tuple[Value, ...] = ()
    project: Value | None = None

    @property
    def parameters(self) -> tuple[Value, ...]:
        """All of them."""
        return (self.w_ih[1], self.w_hh[1], *self.biases, *([self.project] if self.project else []))


def _gates(call: Call) -> int:
    name = call.target.split(".")[1]
    return next(n for word, n in _GATES.items() if name.startswith(word))


def _line(value: Value, axis: int) -> Ids:
    return next(a.ids for a in value.arrays if a.axes == {axis}).ravel()


def _plain(cell: _Cell) -> bool:
    """Whether every axis of every parameter has labels of its own."""
    wanted = [(v, {frozenset({a}) for a in range(v.rank)}) for v in cell.parameters]
    return all({a.axes for a in v.arrays} == axes for v, axes in wanted)


def _advance(call: Call, x: Value, name: str, cell: _Cell) -> tuple[Ids, Ids]:
    """Labels of what a cell keeps and of what it gives, after it has read ``x``."""
    contract(call, "...i,oi->...o", (name, x), cell.w_ih)
    hidden = _line(cell.w_ih[1], 0).reshape(_gates(call), -1)
    for value in (cell.w_hh[1], *cell.biases):
        call.space.union(hidden, _line(value, 0).reshape(hidden.shape))
    call.space.union(hidden, hidden[:1])
    call.space.tag(hidden, Tag.NONLINEAR)
    given = hidden[0]
    if cell.project:
        call.space.union(given, _line(cell.project, 1))
        call.space.tag(_line(cell.project, 1), Tag.CONTRACTED)
        call.pin([LabelArray(given)], "the operator tells a projection by its being narrower than this axis")
        given = _line(cell.project, 0)
    columns = _line(cell.w_hh[1], 1)
    call.space.union(given, columns)
    call.space.tag(columns, Tag.CONTRACTED)
    return hidden[0], given


def _refused(call: Call) -> list[Arrays]:
    call.refuse("a recurrent layer with computed weights")
    return [()] * len(call.outputs)


def _state(call: Call, name: str, value: Value, rows: Sequence[Ids]) -> LabelArray:
    """Labels of a state, lined up with what it starts from; its first axis holds layers and directions."""
    lead = [len(rows)] if len(rows) > 1 or value.rank > 1 else []
    ids = np.stack(rows).reshape([*lead, *[1] * (value.rank - 1 - len(lead)), -1])
    inside = Value(value.shape, value.symbolic, (LabelArray(ids, zero=False),), Nature.ACTIVATION)
    axes = tuple(range(value.rank))
    found = meet(call, value.shape, [("", inside, axes), (name, value, axes)], all)
    return next((a for a in found if a.axes == inside.arrays[0].axes), inside.arrays[0])


def _input(call: Call, name: str) -> Value:
    x = call.value(name)
    return replace(x, arrays=spared(call, x, range(x.rank - 1), "accumulated along this axis"))


@rule(
    "aten.lstm.input",
    "aten.lstm.data",
    "aten.gru.input",
    "aten.gru.data",
    "aten.rnn_tanh.input",
    "aten.rnn_tanh.data",
    "aten.rnn_relu.input",
    "aten.rnn_relu.data",
)
def recurrent(call: Call) -> list[Arrays]:
    """Layers of cells in one or two directions. All states stand in one tensor, so cells are equally wide."""
    cells = _cells(call)
    if not all(_plain(c) for c in cells):
        return _refused(call)
    name = "input" if "input" in call.args else "data"
    x, directions = _input(call, name), 1 + bool(call.args["bidirectional"])
    kept: list[Ids] = []
    given: list[Ids] = []
    for i in range(0, len(cells), directions):
        pairs = [_advance(call, x, name, c) for c in cells[i : i + directions]]
        kept, given = [*kept, *(k for k, _ in pairs)], [*given, *(g for _, g in pairs)]
        line = np.concatenate(given[-directions:])
        ids = line.reshape([1] * (x.rank - 1) + [-1])
        shape = (*x.shape[:-1], len(line))
        name, x = "", Value(shape, x.symbolic, (LabelArray(ids, zero=False),), Nature.ACTIVATION)
    states = _states(call, "hx", kept, given)
    zero = all(s.zero for s in states)
    return [(LabelArray(x.arrays[0].ids, zero),), *((s,) for s in states)]


def _states(call: Call, name: str, kept: Sequence[Ids], given: Sequence[Ids]) -> list[LabelArray]:
    """Labels of the states after the last step: what is given, and in an LSTM what is kept."""
    hx = call.args[name]
    if isinstance(hx, Value):
        return [_state(call, name, hx, given)]
    return [
        _state(call, f"{name}[{i}]", v, rows)
        for i, (v, rows) in enumerate(zip(hx, (given, kept), strict=True))
    ]


def _cells(call: Call) -> list[_Cell]:
    params: list[Value] = call.args["params"]
    biases = 2 if call.args["has_biases"] else 0
    count = call.args["num_layers"] * (1 + bool(call.args["bidirectional"]))
    each = len(params) // count
    cells = []
    for i in range(0, len(params), each):
        w_ih, w_hh = ((f"params[{k}]", params[k]) for k in (i, i + 1))
        project = params[i + 2 + biases] if each > 2 + biases else None
        cells.append(_Cell(w_ih, w_hh, tuple(params[i + 2 : i + 2 + biases]), project))
    return cells


@rule(
    "aten.lstm_cell.default",
    "aten.gru_cell.default",
    "aten.rnn_tanh_cell.default",
    "aten.rnn_relu_cell.default",
)
def recurrent_cell(call: Call) -> list[Arrays]:
    """One step of one cell."""
    biases = tuple(v for n in ("b_ih", "b_hh") if isinstance(v := call.get(n), Value))
    cell = _Cell(("w_ih", call.value("w_ih")), ("w_hh", call.value("w_hh")), biases)
    if not _plain(cell):
        return _refused(call)
    kept, given = _advance(call, _input(call, "input"), "input", cell)
    return [(s,) for s in _states(call, "hx", [kept], [given])]
