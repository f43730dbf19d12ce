"""Balancing: a compiled model's couples in the basis in which few units carry most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ecospa_fx.agreement import ranks
from ecospa_fx.basis import Field, Turn, fields
from ecospa_fx.blocks import bare
from ecospa_fx.errors import RepairError
from ecospa_fx.fsdp import shards
from ecospa_fx.modes import modes_kept
from ecospa_fx.passes.balance import basis, measured, read_by, turned
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.mixable import mixable
from ecospa_fx.planning import named_inputs

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


def balanced(compiled: CompiledModel, batches: Iterable[Any], kinds: tuple[str, ...]) -> Turn:
    """New values of the weights of couples whose units may be mixed; nothing changes.

    Args:
        compiled: the model, from which nothing has been removed.
        batches: inputs: a tensor, a tuple of arguments or a mapping of keyword arguments each.
        kinds: kinds of couples.

    Raises:
        RepairError: something has been removed, there are no batches, or the model is spread over ranks.
    """
    held = list(batches)
    _check(compiled, held)
    found, left = fields(compiled.couplings, kinds)
    with modes_kept(compiled.source, compiled), bare(compiled.source, compiled.signatures.blocks):
        compiled.eval()
        leaves = [compiled.signatures.of(named_inputs(compiled, b), compiled.removal) for b in held]
        found = _mixable(compiled, found, left)
        moments = _moments(compiled, found, leaves)
    parameters = dict(compiled.named_parameters())
    chosen = [n for n in range(len(found)) if n in moments]
    left.update({f.couple: "no batch came to it" for n, f in enumerate(found) if n not in moments})
    turns = [basis(moments[n], read_by(found[n], parameters)) for n in chosen]
    kept = [found[n] for n in chosen]
    return Turn(turned(kept, turns, parameters), tuple(f.couple for f in kept), left)


def _check(compiled: CompiledModel, batches: list[Any]) -> None:
    if compiled.removal.removed:
        raise RepairError("units have been removed already: balance() comes before the first removal")
    if not batches:
        raise RepairError("there are no batches to balance with; pass a list of inputs")
    if ranks() > 1 or shards(compiled):
        raise RepairError(
            "balance() reads whole weights in one process: call it there, save(), and load() on every rank"
        )


def _mixable(compiled: CompiledModel, found: list[Field], left: dict[str, str]) -> list[Field]:
    """Those that no capture refuses; the others go to ``left``."""
    refused: dict[int, str] = {}
    for signature in compiled.signatures:
        refused = mixable(signature.coupled[1], found) | refused
    left.update({found[n].couple: reason for n, reason in refused.items()})
    return [f for n, f in enumerate(found) if n not in refused]


def _moments(compiled: CompiledModel, found: list[Field], leaves: list[Any]) -> dict[int, torch.Tensor]:
    sums: dict[int, torch.Tensor] = {}
    whole = {}
    for signature, inputs in leaves:
        analysis = signature.coupled[1]
        if id(signature) not in whole:
            whole[id(signature)] = compiled.signatures.shrunk(signature, compiled.removal, whole=True)
        dead = dead_labels(analysis, compiled.removal)
        measured(analysis, whole[id(signature)], found, inputs, dead, sums)
    return sums
