r"""Balance: a basis for the units of a head in which few of them carry most. Nothing is changed.

Values of attention are weighted and added, and nothing else happens to them between ``W_V`` and ``W_O``. So
``W_V -> T W_V`` and ``W_O -> W_O T⁻¹`` compute the same for any invertible ``T``: units may be chosen anew.
With ``C`` the second moments of what ``W_O`` reads, and ``D = W_Oᵀ W_O``, both summed over the heads that
share values, the balanced basis makes both the same diagonal matrix:

.. math:: T C T^\top = T^{-\top} D T^{-1} = \Lambda^{1/2}, \qquad \Lambda = \mathrm{eig}(C D)

Its last units are those that add least to the output (balanced truncation, Moore 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from ecospa_fx.basis import Block, Field
from ecospa_fx.executable import Executable
from ecospa_fx.labels import Ids
from ecospa_fx.passes.calibrate import Probe
from ecospa_fx.program import Analysis

RIDGE = 1e-6
"""Least energy of a direction, as a fraction of the mean one: what the data never show is not blown up."""


class Moments(Probe):
    """Second moments of what is read of each field, over one batch after the other."""

    def __init__(self, analysis: Analysis, module: fx.GraphModule, fields: Sequence[Field],
                 dead: Ids, sums: dict[int, torch.Tensor]) -> None:  # fmt: skip
        super().__init__(analysis, dead, module)
        self.found = sums
        component, labels = analysis.partition.component, analysis.labels
        self.first = {}
        for number, one in enumerate(fields):
            block = one.blocks[0]
            ids = labels[block.parameter][block.axis]
            assert ids is not None  # mixable() has looked
            self.first[int(component[ids[block.start]])] = (number, one.width)

    def saw(self, components: Ids, tensor: torch.Tensor, axes: list[int]) -> None:
        """Add the moments of every block of a field."""
        line = components.ravel()
        rows = tensor.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes)).flatten(0, -2)
        for start, component in enumerate(line):
            if int(component) in self.first:
                number, width = self.first[int(component)]
                x = rows[:, start : start + width].double()
                self.found[number] = self.found.get(number, torch.zeros((), device=x.device)) + x.T @ x


def basis(moments: torch.Tensor, readers: torch.Tensor) -> torch.Tensor:
    """The balanced basis.

    Args:
        moments: ``C``, shape ``[units, units]``.
        readers: ``D``, shape ``[units, units]``.

    Returns:
        ``T``, float64, the strongest unit first; the identity where nothing is seen or read.
    """
    moments, readers = moments.double(), readers.double()
    unit = torch.eye(len(moments), dtype=torch.float64, device=moments.device)
    level = moments.diagonal().mean()
    if not level > 0 or not readers.diagonal().mean() > 0:
        return unit
    factor = torch.linalg.cholesky(moments + RIDGE * level * unit)
    power, turned = torch.linalg.eigh(factor.T @ readers @ factor)
    power, turned = power.flip(0), turned.flip(1)
    power = power.clamp_min(RIDGE * power.mean())
    found: torch.Tensor = power.pow(0.25)[:, None] * (turned.T @ torch.linalg.inv(factor))
    return found


def read_by(field: Field, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``D``: how the weights that sum over units read them, shape ``[units, units]``."""
    total = torch.zeros(field.width, field.width, dtype=torch.float64)
    for block in field.blocks:
        if block.role == "in":
            part = lines(parameters[block.parameter], block, field.width).double()
            total = total.to(part) + part @ part.T
    return total


def lines(tensor: torch.Tensor, block: Block, width: int) -> torch.Tensor:
    """What one block holds of a parameter: ``[units, others]``."""
    return tensor.detach().movedim(block.axis, 0)[block.start : block.start + width].reshape(width, -1)


@torch.no_grad()
def turned(
    fields: Sequence[Field], turns: Sequence[torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """New values of all parameters that hold units of ``fields``.

    Args:
        fields: the units.
        turns: ``T`` of each field.
        parameters: by name; they stay as they are.
    """
    values: dict[str, torch.Tensor] = {}
    for field, turn in zip(fields, turns, strict=True):
        inverse = torch.linalg.inv(turn).T
        for block in field.blocks:
            value = values.setdefault(block.parameter, parameters[block.parameter].detach().clone())
            part = value.movedim(block.axis, 0)[block.start : block.start + field.width]
            mixed = (turn if block.role == "out" else inverse).to(part.device) @ part.reshape(
                field.width, -1
            ).double()
            part.copy_(mixed.reshape(part.shape))
    return values


def measured(
    analysis: Analysis, executable: Executable, fields: Sequence[Field], inputs: list[object],
    dead: Ids, sums: dict[int, torch.Tensor]
) -> None:  # fmt: skip
    """Add the moments of one batch to ``sums``, by the number of the field."""
    probe = Moments(analysis, executable.module, fields, dead, sums)
    with torch.no_grad():
        probe.run(*executable.arguments(inputs))
