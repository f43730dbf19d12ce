"""Planning: what a compiled model would lose, from what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.fsdp import shards, whole_parameters
from ecospa_fx.passes.calibrate import Calibration
from ecospa_fx.passes.choose import Gradients, Present, choose, unread
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.gates import gates
from ecospa_fx.passes.told import told
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.scores import Score, ScoreFunction, default_score
from ecospa_fx.signature import bind
from ecospa_fx.signatures import Signature

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel

Loss = Callable[[Any, Any], torch.Tensor]
"""From a model's output and the batch that it belongs to, to a number: a mean over tokens."""


def planned(
    compiled: CompiledModel,
    grads: Gradients,
    score: str | Score | ScoreFunction | None,
    calibration: Iterable[Any] | ActivationStatistics | None,
    settings: PlanSettings,
    **aim: Any,
) -> Plan:
    """See :meth:`CompiledModel.plan`; nothing changes."""
    shards(compiled)  # whole since a forward pass, they would be read where others read their parts
    graph, analysis = compiled.signatures.first(compiled.removal).coupled
    limits = settings.limits
    if settings.layout == "native" and hasattr(getattr(compiled.source, "config", None), "to_dict"):
        graph, untold = told(graph, compiled.source, compiled.dense_shapes)
        limits = {**limits, **dict.fromkeys(untold, 0.0)}
    parameters = dict(compiled.named_parameters(remove_duplicate=False))
    outside = unread(graph, compiled.named_parameters())
    present = Present(graph, analysis.partition, compiled.removal, parameters, outside)
    activations = None
    if calibration is not None:
        with whole_parameters(compiled):
            activations = calibrated(compiled, calibration)
    if score is None:
        has_gradients = grads is not None or any(p.grad is not None for p in parameters.values())
        score = default_score(has_gradients, activations is not None)
    bound = replace(settings, limits=limits)
    found = choose(present, grads, score, bound, activations=activations, **aim)
    return replace(found, settings=replace(found.settings, limits=settings.limits))


def calibrated(
    compiled: CompiledModel, batches: Iterable[Any] | ActivationStatistics, loss: Loss | None = None
) -> ActivationStatistics:
    """Statistics of the activations over batches of inputs; see :meth:`CompiledModel.calibrate`."""
    if isinstance(batches, ActivationStatistics):
        return batches
    result = Calibration(compiled.couplings)
    for batch in batches:
        signature, leaves = compiled.signatures.of(named_inputs(compiled, batch), compiled.removal)
        analysis = signature.coupled[1]
        dead = dead_labels(analysis, compiled.removal)
        whole = compiled.signatures.shrunk(signature, compiled.removal, whole=True)
        if loss is None:
            result.run(analysis, dead, whole, leaves)
        else:
            measure = partial(_loss_of, signature, loss, batch)
            result.add(analysis, gates(analysis, dead, whole, leaves, measure))
    return result.result()


def _loss_of(signature: Signature, loss: Loss, batch: Any, flat: Any) -> torch.Tensor:
    return loss(signature.program.output(flat), batch)


def named_inputs(compiled: CompiledModel, batch: Any) -> dict[str, Any]:
    """A batch (a tensor, a tuple of arguments, a mapping of keyword arguments) as a call's arguments."""
    args = () if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else (batch,)
    return bind(compiled.source.forward, args, batch if isinstance(batch, Mapping) else {})
