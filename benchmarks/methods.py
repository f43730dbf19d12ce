"""Ways to choose what goes, for benchmarks of quality on any model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ecospa_fx
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.fisher import GradientStatistics
from ecospa_fx.passes.plan import plan
from ecospa_fx.passes.score import score as score_units
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.scores import ScoreContext, find_score

Batch = dict[str, torch.Tensor]
Loss = Callable[[Any, Batch], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """How units are ranked, how the target is shared out, and how weights make up for what went."""

    score: str
    allocation: str
    repair: Mapping[str, Any] | None = None


METHODS = {
    "random": Method("random", "uniform"),
    "magnitude": Method("magnitude", "uniform"),
    "Eq. 9 alone": Method("l1_product", "uniform"),
    "Fisher + Eq. 9 (the paper)": Method("l1_product", "ecospa"),
    "LLM-Pruner's score": Method("llm_pruner", "ecospa"),
    "Wanda-sp's score": Method("wanda_sp", "ecospa"),
    "FLAP's score": Method("flap", "ecospa"),
    "activation": Method("activation", "ecospa"),
    "Taylor": Method("taylor", "ecospa"),
    "Fisher": Method("fisher", "ecospa"),
    "gate": Method("gate", "global"),
    "gate, repaired": Method("gate", "global", repair={"target": "product"}),
    "gate, all sums repaired": Method("gate", "global", repair={"target": "sum", "every": True}),
}


def method(name: str) -> Method:
    """One of the rows above, or a score and an allocation, ``"taylor/uniform"``; of the dense model, none."""
    return METHODS[name] if name in METHODS else Method(*name.partition("/")[::2])


@dataclass(frozen=True, eq=False)
class Evidence:
    """A model, and what calibration data say about it.

    Attributes:
        compiled: the model, which stays as it is.
        repair: batches for closed-form repairs.
        activations: what :meth:`~ecospa_fx.CompiledModel.calibrate` gives.
        gradients: one sample of Eq. 6 for each batch.
        whole: one sample, the gradient of all batches, as the paper of ``llm_pruner`` takes it.
    """

    compiled: ecospa_fx.CompiledModel
    repair: Sequence[Batch]
    activations: ActivationStatistics
    gradients: GradientStatistics | None = None
    whole: GradientStatistics | None = None

    def plan(self, how: Method, ratio: float, seed: int) -> Plan:
        """Which units go."""
        graph, removal = self.compiled.couplings, self.compiled.removal
        parameters, generator = dict(self.compiled.named_parameters()), np.random.default_rng(seed)
        gradients = self.whole if "elements" in find_score(how.score).needs else self.gradients
        context = ScoreContext(graph, removal, parameters, gradients, self.activations, generator=generator)
        scores, partition = score_units(how.score, context), self.compiled.analysis.partition
        importance = gradients.importance if gradients else None
        return plan(graph, partition, removal, scores, importance,
                    ratio=ratio, settings=PlanSettings(how.allocation), score=how.score)  # fmt: skip

    def smaller(
        self, how: Method, ratio: float, seed: int = 0, kept: Path | None = None
    ) -> ecospa_fx.CompiledModel:
        """A copy that has lost its share, out of the folder ``kept`` if there is one."""
        if kept and kept.exists():
            return ecospa_fx.load(kept, copy.deepcopy(self.compiled.source), check=False)
        result = copy.deepcopy(self.compiled)
        if ratio:
            chosen = self.plan(how, ratio, seed)
            fitted = None if how.repair is None else self.compiled.repair(chosen, self.repair, **how.repair)
            result.apply(chosen, repair=fitted)
        if kept:
            result.save(kept)
        return result


def gradients(
    compiled: ecospa_fx.CompiledModel, batches: Sequence[Batch], loss: Loss
) -> tuple[GradientStatistics, GradientStatistics]:
    """One sample of Eq. 6 for each batch, and one sample for all of them."""
    each, whole = ecospa_fx.FisherAccumulator(compiled), ecospa_fx.FisherAccumulator(compiled, elements=True)
    total: dict[str, torch.Tensor] = {}
    for batch in batches:
        compiled.zero_grad()
        loss(compiled(**batch), batch).backward()
        each.update()
        found = {n: p.grad for n, p in compiled.named_parameters() if p.grad is not None}
        total = {n: total[n] + g if n in total else g for n, g in found.items()}
    whole.update(total)
    compiled.zero_grad()
    return each.statistics, whole.statistics


def plain() -> list[str]:
    """Methods that choose by a score alone, in the model's own basis."""
    return [name for name, how in METHODS.items() if how.repair is None]


def needs_gradients(names: Sequence[str]) -> bool:
    """Whether one of these methods looks at gradients of parameters."""
    return any(
        m.allocation == "ecospa" or "gradients" in find_score(m.score).needs for m in map(method, names)
    )
