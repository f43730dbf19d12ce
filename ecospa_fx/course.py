"""Course: how large a model is to be after each step, from where it begins to its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ecospa_fx.passes.by_kind import held_by
from ecospa_fx.passes.choose import unread
from ecospa_fx.passes.reach import reach, shares
from ecospa_fx.plan import PlanSettings
from ecospa_fx.ramp import Ramp
from ecospa_fx.target import WHOLE, Aim, Target

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


class Course:
    """A target, a ramp towards it, and the sizes on the way once the model's graph is known.

    Args:
        target: what is to be reached.
        ramp: when, and how far each round goes.
        settings: how it is shared out, as for ``sparsify``.

    Attributes:
        settings: the same, checked, with the kinds of couples that the target names.
        begin: the whole model's size at the start.
        aims: what is aimed at, empty until :meth:`measure`; see :func:`~ecospa_fx.passes.reach.reach`.

    Raises:
        PlanError: a setting is unknown or out of its range.
    """

    def __init__(self, target: Target, ramp: Ramp, settings: Mapping[str, Any]) -> None:
        chosen = PlanSettings.of(settings)
        self.target = target
        self.ramp = ramp
        self.settings = replace(chosen, kinds=target.kinds(chosen.kinds))
        self.begin = 0
        self.aims: dict[str, Aim] = {}

    def measure(self, compiled: CompiledModel) -> None:
        """Find where the model stands, and check that the target is in reach.

        Raises:
            PlanError: it is not.
            CoupleError: the model has no couples.
        """
        graph, partition = compiled.couplings, compiled.analysis.partition
        outside = unread(graph, compiled.named_parameters())
        self.aims = reach(graph, partition, compiled.removal, self.target, self.settings, outside)
        self.begin = _size(compiled)

    def size_at(self, step: int) -> int:
        """How many parameters the whole model is to have after ``step``."""
        progress = self.ramp.progress(step)
        return self.begin - sum(aim.begin - aim.at(progress) for aim in self.aims.values())

    def asked(self, compiled: CompiledModel, step: int) -> dict[str, Any]:
        """What a round after ``step`` is to reach, as arguments of ``CompiledModel.plan``."""
        progress = self.ramp.progress(step)
        if WHOLE in self.aims:
            return {"target_params": min(self.aims[WHOLE].at(progress), _size(compiled))}
        graph, partition = compiled.couplings, compiled.analysis.partition
        held = {k: held_by(graph, partition, compiled.removal, k) for k in self.aims}
        return {"ratio": shares({k: (held[k], aim.at(progress)) for k, aim in self.aims.items()})}

    def config(self) -> dict[str, Any]:
        """What must be the same in a run that goes on, JSON-ready."""
        return {**self.target.to_dict(), **self.ramp.to_dict(), "settings": self.settings.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """Sizes, JSON-ready."""
        aims = {name: [aim.begin, aim.final] for name, aim in self.aims.items()}
        return {"begin": self.begin, "aims": aims}


def _size(compiled: CompiledModel) -> int:
    return sum(p.numel() for p in compiled.parameters())
