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
    settings = settings or RepairSettings()
    wanted, odd = read_units(compiled.couplings, smaller, settings.every)
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


def read_units(
    graph: CouplingGraph, smaller: Mapping[str, ParameterCut], every: bool = False
) -> tuple[dict[str, int], dict[str, str]]:
    """The matrices that sum over fewer inputs after a cut, with the axis; and other weights that do.

    Args:
        graph: the couples.
        smaller: what each parameter loses.
        every: also the matrices that sum over units and lose none.
    """
    wanted, odd = {}, {}
    for axis in graph.axes:
        if axis.role != "in" or not axis.weight:
            continue
        cut = smaller.get(axis.parameter)
        loses = cut is not None and cut.old_shape[axis.axis] != cut.new_shape[axis.axis]
        if len(graph.shapes[axis.parameter]) == 2 and axis.rows == 1:
            if loses or every:
                wanted[axis.parameter] = axis.axis
        elif loses:
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
