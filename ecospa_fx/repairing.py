"""Repairing: what a compiled model would gain after a removal, from batches of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ecospa_fx.agreement import ranks
from ecospa_fx.blocks import bare
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import RepairError
from ecospa_fx.modes import modes_kept
from ecospa_fx.passes.cuts import cuts
from ecospa_fx.passes.repair import Trial, repair
from ecospa_fx.planning import named_inputs
from ecospa_fx.removal import Removal
from ecospa_fx.repair import Repair, RepairSettings

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


def repaired(
    compiled: CompiledModel,
    removal: Removal,
    batches: Iterable[Any],
    settings: RepairSettings | None = None,
) -> Repair:
    """Fit the weights that would lose inputs to what the removed units carry; nothing changes.

    Both graphs run in evaluation mode, without hooks. All batches are held at once, with their activations at
    one place of the graph.

    Args:
        compiled: the model as it is.
        removal: what will be gone, including all that is gone already.
        batches: inputs: a tensor, a tuple of arguments or a mapping of keyword arguments each.
        settings: what is fitted to what.

    Raises:
        RepairError: there are no batches, or each rank has its own.
        PlanError: the removal does not fit the model.
    """
    held = list(batches)
    _check(compiled, held)
    smaller = cuts(compiled.removal, removal, compiled.dense_shapes)
    wanted, odd = losing_inputs(compiled.couplings, smaller)
    with modes_kept(compiled.source, compiled), bare(compiled.source, compiled.signatures.blocks):
        compiled.eval()
        trials = _trials(compiled, removal, held)
        with torch.no_grad():
            found = repair(trials, dict(compiled.named_parameters()), smaller, wanted, settings)
    return Repair(found.deltas, found.fits, {**odd, **found.skipped})


def _check(compiled: CompiledModel, batches: list[Any]) -> None:
    if not batches:
        raise RepairError(
            "there are no batches to repair with; pass a list, as a generator can be read only once"
        )
    if ranks() > 1:
        raise RepairError(
            "a repair fits weights to the batches of one process; prune and repair in one process, save(), "
            "and load() on every rank"
        )


def losing_inputs(
    graph: CouplingGraph, smaller: Mapping[str, ParameterCut]
) -> tuple[dict[str, int], dict[str, str]]:
    """The matrices that sum over fewer inputs after a cut, with the axis; and other weights that do."""
    wanted, odd = {}, {}
    for axis in graph.axes:
        cut = smaller.get(axis.parameter)
        if axis.role != "in" or not axis.weight or cut is None:
            continue
        if cut.old_shape[axis.axis] == cut.new_shape[axis.axis]:
            continue
        if len(cut.old_shape) == 2 and axis.rows == 1:
            wanted[axis.parameter] = axis.axis
        else:
            odd[axis.parameter] = "it is a stack of matrices or a convolution"
    return wanted, odd


def _trials(compiled: CompiledModel, removal: Removal, batches: list[Any]) -> list[Trial]:
    signatures, graphs, found = compiled.signatures, {}, []
    for batch in batches:
        signature, leaves = signatures.of(named_inputs(compiled, batch), compiled.removal)
        if id(signature) not in graphs:
            graphs[id(signature)] = [
                signatures.shrunk(signature, r, True) for r in (compiled.removal, removal)
            ]
        before, after = graphs[id(signature)]
        found.append(Trial(signature.coupled[1], before, after, leaves))
    return found
