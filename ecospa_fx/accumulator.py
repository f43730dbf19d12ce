"""Accumulator: Fisher information of couples, collected while a model trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ecospa_fx.coupling import DEFAULT_KINDS, CouplingGraph
from ecospa_fx.errors import GradientError
from ecospa_fx.fisher import FisherSums, GradientStatistics
from ecospa_fx.gradients import checked_gradients
from ecospa_fx.removal import Removal


class Sparsifiable(Protocol):
    """What an accumulator needs of a compiled model."""

    @property
    def couplings(self) -> CouplingGraph:
        """The couples."""

    @property
    def removal(self) -> Removal:
        """What is gone so far."""

    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """Parameters by name."""


@dataclass(eq=False)
class FisherAccumulator:
    """Averages squared gradients over training steps (Eq. 6): a scalar for each couple, never a gradient.

    Call :meth:`update` between ``backward()`` and ``zero_grad()``; with mixed precision, unscale the
    gradients first. One update is one sample of Eq. 6, so smaller batches measure more.

    A removal changes what the numbers are about: the first update after it starts anew, and until then the
    accumulator holds nothing.

    Args:
        compiled: the compiled model.
        units: also keep what the unit scores ``taylor`` and ``fisher`` need, two numbers for each unit.
        kinds: couples of other kinds are left out, and what only they hold needs no gradient.
        elements: also keep what the score ``llm_pruner`` needs, one more number for each; doubles the time.
    """

    compiled: Sparsifiable
    units: bool = True
    kinds: tuple[str, ...] = DEFAULT_KINDS
    elements: bool = False
    _sums: FisherSums | None = field(default=None, init=False, repr=False)
    _removal: Removal | None = field(default=None, init=False, repr=False)

    def update(self, gradients: Mapping[str, torch.Tensor] | None = None, scale: float = 1.0) -> None:
        """Add one sample.

        Args:
            gradients: by parameter name; the parameters' own ``.grad`` by default.
            scale: what the gradients have been multiplied with, by loss scaling say.

        Raises:
            GradientError: gradients are missing, misnamed, of the wrong shape, NaN or infinite. All culprits
                are listed, and nothing was added.
        """
        sums = self._current()
        parameters = dict(self.compiled.named_parameters(remove_duplicate=False))
        held = [piece.parameter for piece in sums.held]
        checked = checked_gradients(held, parameters, gradients)
        sums.add(checked, parameters, scale)

    def _current(self) -> FisherSums:
        """The sums for the model as it is now."""
        graph, removal = self.compiled.couplings, self.compiled.removal
        if self._sums is None or removal is not self._removal:
            self._sums = FisherSums(graph, removal, self.units, self.kinds, self.elements)
            self._removal = removal
        return self._sums

    def reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add up what all ranks have seen since the last removal; every rank must call this.

        Args:
            group: the ranks; all of them by default.
        """
        self._current().reduce(group)

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last removal, as numbers and tensors."""
        return self._current().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a model from which the same has been removed.

        Raises:
            GradientError: it is of another model.
        """
        self.reset()
        self._current().load_state_dict(state)

    @property
    def samples(self) -> int:
        """Number of updates since the start, or since the last removal."""
        current = self._sums is not None and self._removal is self.compiled.removal
        return self._sums.samples if self._sums is not None and current else 0

    @property
    def statistics(self) -> GradientStatistics:
        """The mean over all updates since the last removal.

        Raises:
            GradientError: there was none.
        """
        if not self.samples or self._sums is None:
            raise GradientError(
                "the Fisher accumulator has seen no gradient of the model as it is now: call update() after "
                "backward(), in every round anew"
            )
        return self._sums.result()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = None
