"""A checked change of one compiled model to a smaller one, not yet made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.executable import Executable
from ecospa_fx.fsdp import shards
from ecospa_fx.passes import remap
from ecospa_fx.passes.cuts import cuts
from ecospa_fx.removal import Removal
from ecospa_fx.repair import Repair
from ecospa_fx.signatures import Signature

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


@dataclass(eq=False)
class Change:
    """What becomes of a compiled model: its graphs, its parameters, and the state of its optimizers.

    Memory: see :class:`~ecospa_fx.passes.remap.Transfer`; former values of what is repaired are kept, too.
    Drop the Change to free what was removed.

    Attributes:
        compiled: the model.
        removal: what will be gone.
        executables: the smaller graph of each signature.
        transfer: the smaller parameters.
        repair: what is added to them.
    """

    compiled: CompiledModel
    removal: Removal
    executables: Sequence[tuple[Signature, Executable]]
    transfer: remap.Transfer
    repair: Repair = field(default_factory=Repair)
    _values: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _before: Removal = field(default_factory=Removal, repr=False)
    _former: Sequence[tuple[Signature, Executable]] = field(default=(), repr=False)

    def commit(self) -> None:
        """Make the change; if it fails, everything is as before."""
        self.transfer.commit()
        self._before, self._former = self.compiled.removal, [(s, s.executable) for s, _ in self.executables]
        for signature, executable in self.executables:
            signature.executable = executable
        self.compiled.removal = self.removal
        try:
            self._values = self.repair.apply(self._parameters())
        except BaseException:
            self.rollback()
            raise

    def rollback(self) -> None:
        """Undo `commit`, bit for bit; call it before anything else changes."""
        with torch.no_grad():
            for name, value in self._values.items():
                self._parameters()[name].copy_(value)
        self.transfer.rollback()
        for signature, executable in self._former:
            signature.executable = executable
        self.compiled.removal = self._before

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.compiled.named_parameters(remove_duplicate=False))


def prepare(compiled: CompiledModel, removal: Removal, optimizers: Sequence[Optimizer] = (),
            repair: Repair | None = None) -> Change:  # fmt: skip
    """Check that a model and its optimizers can become as small as ``removal`` says; change nothing.

    Args:
        compiled: the model.
        removal: what will be gone, including all that is gone already.
        optimizers: their state follows.
        repair: what is added to the parameters that are left.

    Raises:
        EcoSpaError: it does not fit the model, a graph, or an optimizer.
    """
    smaller = cuts(compiled.removal, removal, compiled.dense_shapes)
    executables = [(s, compiled.signatures.shrunk(s, removal)) for s in compiled.signatures]
    held = shards(compiled)  # first of all, for it puts sharded parameters in their places
    transfer = remap.prepare(dict(compiled.named_parameters()), smaller, optimizers, held)
    repair = repair or Repair()
    shapes = {n: removal.shape(n, dense) for n, dense in compiled.dense_shapes.items()}
    repair.check(dict(compiled.named_parameters(remove_duplicate=False)), shapes)
    return Change(compiled, removal, executables, transfer, repair)
