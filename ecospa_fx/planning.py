"""Planning: what a compiled model would lose, from what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ecospa_fx.fsdp import shards, whole_parameters
from ecospa_fx.passes.calibrate import Calibration
from ecospa_fx.passes.choose import Gradients, Present, choose, unread
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.scores import ActivationStatistics, Score, ScoreFunction, default_score
from ecospa_fx.signature import bind

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


def planned(
    compiled: CompiledModel,
    grads: Gradients,
    score: str | Score | ScoreFunction | None,
    calibration: Iterable[Any] | None,
    settings: PlanSettings,
    **aim: Any,
) -> Plan:
    """See :meth:`CompiledModel.plan`; nothing changes."""
    shards(compiled)  # whole since a forward pass, they would be read where others read their parts
    graph, analysis = compiled.signatures.first(compiled.removal).coupled
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
    return choose(present, grads, score, settings, activations=activations, **aim)


def calibrated(compiled: CompiledModel, batches: Iterable[Any]) -> ActivationStatistics:
    """Statistics of the activations over batches of inputs."""
    result = Calibration(compiled.couplings)
    for batch in batches:
        args = () if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else (batch,)
        named = bind(compiled.source.forward, args, batch if isinstance(batch, Mapping) else {})
        signature, leaves = compiled.signatures.of(named, compiled.removal)
        analysis = signature.coupled[1]
        dead = dead_labels(analysis, compiled.removal)
        whole = compiled.signatures.shrunk(signature, compiled.removal, whole=True)
        result.run(analysis, dead, whole, leaves)
    return result.result()
