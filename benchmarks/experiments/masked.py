"""What cannot be a smaller model of the same kind: removal matrix by matrix, and truncated SVD, as masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ecospa_fx import CompiledModel, Couple

Place = tuple[str, int, Tensor]
"""A parameter, an axis, and the indices along it that belong to one matrix of a couple."""


class Masked:
    """A dense model in which removed entries are zero and stay zero, moments included.

    Args:
        compiled: the dense model; it is never cut.
        optimizer: its optimizer.
    """

    def __init__(self, compiled: CompiledModel, optimizer: Optimizer) -> None:
        self.parameters = dict(compiled.named_parameters())
        self.masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.parameters.items()}
        self.optimizer = optimizer
        self.places = {c.name: _places(compiled, c) for c in compiled.couplings.couples}

    def apply(self) -> None:
        """Zero what is gone."""
        with torch.no_grad():
            for name, param in self.parameters.items():
                param.mul_(self.masks[name])
                for value in self.optimizer.state[param].values():
                    if value.shape == param.shape:
                        value.mul_(self.masks[name])

    def _drop(self, place: Place, gone: Tensor) -> None:
        name, axis, indices = place
        for one in (name, name.replace(".weight", ".bias")):
            if one in self.masks and axis < self.masks[one].dim() and (one == name or axis == 0):
                self.masks[one].index_fill_(axis, indices[gone], False)

    def individually(self, couple: Couple, left: int) -> None:
        """Each matrix of the couple keeps the ``left`` rows or columns of greatest L1 norm of its own."""
        for place in self.places[couple.name]:
            norms = _rows(self.parameters[place[0]], place).abs().sum(1)
            self._drop(place, norms.argsort(descending=True)[left:])
        self.apply()

    def aligned(self, couple: Couple, left: int) -> None:
        """The couple keeps the ``left`` units of greatest product of L1 norms (Eq. 9)."""
        places = self.places[couple.name]
        norms = [_rows(self.parameters[p[0]], p).abs().sum(1).log() for p in places]
        for place in places:
            self._drop(place, torch.stack(norms).sum(0).argsort(descending=True)[left:])
        self.apply()

    @torch.no_grad()
    def truncated(self, couple: Couple, left: int) -> None:
        """Both matrices become the factors of their product's best approximation of rank ``left``.

        Args:
            couple: of queries and keys, or of values and outputs; biases count as one more column.
            left: the rank, which takes the first rows and columns.
        """
        first, second = self.places[couple.name]
        one, two = self._with_bias(first), self._with_bias(second)
        u, s, v = torch.linalg.svd(one.T @ two)
        root = s[:left].sqrt()
        self._put(first, (u[:, :left] * root).T)
        self._put(second, root[:, None] * v[:left])
        for place in (first, second):
            self._drop(place, torch.arange(left, len(place[2])))
        self.apply()

    def _bias(self, place: Place) -> nn.Parameter | None:
        return self.parameters.get(place[0].replace(".weight", ".bias")) if place[1] == 0 else None

    def _with_bias(self, place: Place) -> Tensor:
        rows, bias = _rows(self.parameters[place[0]], place), self._bias(place)
        return rows if bias is None else torch.cat([rows, bias[place[2], None]], 1)

    def _put(self, place: Place, rows: Tensor) -> None:
        name, axis, indices = place
        param, bias, kept = self.parameters[name], self._bias(place), indices[: len(rows)]
        if bias is not None:
            bias[kept] = rows[:, -1]
            rows = rows[:, :-1]
        param.index_copy_(axis, kept, rows if axis == 0 else rows.T)


def _places(compiled: CompiledModel, couple: Couple) -> list[Place]:
    units = set(couple.units.tolist())
    held = {(w.parameter, w.axis) for w in couple.weights}
    return [
        (a.parameter, a.axis, torch.tensor([i for i, c in enumerate(a.components) if int(c) in units]))
        for a in compiled.couplings.axes
        if (a.parameter, a.axis) in held and a.weight
    ]


def _rows(param: Tensor, place: Place) -> Tensor:
    """The rows (or columns, turned) of one matrix: ``[units, entries]``."""
    rows = param.detach().index_select(place[1], place[2])
    return rows if place[1] == 0 else rows.T
