"""Choose: from gradients and a target to a plan. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ecospa_fx.accumulator import FisherAccumulator
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import CoupleError, GradientError, PlanError
from ecospa_fx.fisher import GradientStatistics, gradient_statistics
from ecospa_fx.labels import Partition
from ecospa_fx.passes.by_kind import check_kinds, plan_by_kind
from ecospa_fx.passes.plan import plan
from ecospa_fx.passes.score import score
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.removal import Removal
from ecospa_fx.scores import Score, ScoreContext, ScoreFunction, find_score

Gradients = Mapping[str, torch.Tensor] | Iterable[Mapping[str, torch.Tensor]] | FisherAccumulator | None


@dataclass(frozen=True, eq=False)
class Present:
    """A model as it is now.

    Attributes:
        graph: its couples.
        partition: components of its labels.
        removal: what is gone.
        parameters: present parameters, by all their names.
        outside: number of parameters that the graph does not read.
    """

    graph: CouplingGraph
    partition: Partition
    removal: Removal
    parameters: Mapping[str, torch.Tensor]
    outside: int


def choose(
    present: Present,
    gradients: Gradients,
    how: str | Score | ScoreFunction,
    settings: PlanSettings,
    *,
    ratio: float | Mapping[str, float] | None = None,
    target_params: int | None = None,
    activations: ActivationStatistics | None = None,
    seed: int = 0,
) -> Plan:
    """Score the units and plan what goes.

    Args:
        present: the model as it is.
        gradients: as for ``sparsify``.
        how: score by which units are ranked.
        settings: how the target is shared out.
        ratio: fraction of the coupled parameters that goes; or one for each kind of couples.
        target_params: the whole model's size afterwards, instead.
        activations: statistics of calibration data, for scores that need them.
        seed: of random scores.

    Raises:
        CoupleError: there is nothing to couple; the reasons are listed.
        GradientError: gradients are missing or malformed.
        PlanError: the target is malformed or out of reach.
        RewriteError: parameters are sharded over ranks.
    """
    if isinstance(ratio, Mapping):
        if target_params is not None:
            raise PlanError("give either ratio or target_params, and not both")
        check_kinds(present.graph, ratio, settings)
        settings = replace(settings, kinds=tuple(ratio))
    check_couples(present.graph, settings.kinds)
    statistics = _statistics(present, gradients, settings.kinds, "elements" in find_score(how).needs)
    context = ScoreContext(
        present.graph,
        present.removal,
        present.parameters,
        statistics,
        activations,
        settings.kinds,
        np.random.default_rng(seed),
    )
    model = (present.graph, present.partition, present.removal)
    measured = (score(how, context), statistics.importance if statistics is not None else None)
    name = how if isinstance(how, str) else getattr(how, "name", getattr(how, "__name__", ""))
    rest: dict[str, Any] = {"settings": settings, "outside": present.outside, "score": name}
    if isinstance(ratio, Mapping):
        return plan_by_kind(*model, *measured, ratios=ratio, **rest)
    return plan(*model, *measured, ratio=ratio, target_params=target_params, **rest)


def unread(graph: CouplingGraph, parameters: Iterable[tuple[str, torch.Tensor]]) -> int:
    """Number of parameters that the graph does not read; each is to be given once."""
    return sum(p.numel() for name, p in parameters if name not in graph.shapes)


def check_couples(graph: CouplingGraph, kinds: Sequence[str]) -> None:
    """Refuse a model in which nothing can go.

    Raises:
        CoupleError: no couple of these kinds; the most frequent reasons are listed.
    """
    if any(c.kind in kinds for c in graph.couples):
        return
    found = sorted({c.kind for c in graph.couples})
    reasons = list(dict.fromkeys(str(f) for f in graph.frozen))
    other = f" (there are couples of kind {', '.join(found)}: pass kinds={tuple(found)!r})" if found else ""
    listed = "".join(f"\n  {r}" for r in reasons[:12]) or "\n  the graph reads no weight matrices"
    raise CoupleError(
        f"the model has no couples of kind {', '.join(kinds)}{other}; what holds its weights:{listed}"
    )


def _statistics(
    present: Present, gradients: Gradients, kinds: Sequence[str], elements: bool
) -> GradientStatistics | None:
    if isinstance(gradients, FisherAccumulator):
        return gradients.statistics
    if gradients is None:
        own = {n: p.grad for n, p in present.parameters.items() if p.grad is not None}
        if not own:
            return None
        gradients = own
    if isinstance(gradients, torch.Tensor) or not isinstance(gradients, Iterable):
        raise GradientError(f"grads maps parameter names to gradients; {type(gradients).__name__} does not")
    samples = _samples([gradients] if isinstance(gradients, Mapping) else gradients)
    model = (present.graph, present.removal, present.parameters)
    return gradient_statistics(*model, samples, kinds=kinds, elements=elements)


def _samples(gradients: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[Mapping[str, torch.Tensor]]:
    for sample in gradients:
        if not isinstance(sample, Mapping):
            raise GradientError(
                "grads maps parameter names to gradients, or is an iterable of such mappings, not of "
                f"{type(sample).__name__}; for one set of gradients pass "
                "{name: p.grad for name, p in model.named_parameters()}"
            )
        yield sample
