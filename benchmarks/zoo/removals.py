"""Random removals: half of the units of every couple, equal counts where the graph asks for them."""

from __future__ import annotations

import numpy as np

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.labels import Ids
from ecospa_fx.removal import Removal

KINDS = ("qk", "vo", "ffn", "lowrank", "conv")


def random_removal(compiled: CompiledModel, fraction: float, seed: int) -> Removal:
    """Remove ``fraction`` of the units that are left in every segment, on top of what is gone already.

    Args:
        compiled: the model.
        fraction: share of the units; at least one unit of each segment stays.
        seed: of the choice.
    """
    graph, partition = compiled.couplings, compiled.analysis.partition
    rng = np.random.default_rng(seed)
    dead = _gone(compiled)
    for bundle in np.unique(graph.bundle_of):
        numbers = np.flatnonzero(graph.bundle_of == bundle)
        segments = [np.flatnonzero((graph.segment_of == s) & ~dead) for s in numbers]
        if not all(len(s) for s in segments):
            continue
        if graph.couples[graph.couple_of[segments[0][0]]].kind in KINDS:
            fewest = min(len(s) for s in segments)
            count = min(int(fewest * fraction), fewest - 1)
            for segment in segments:
                dead[rng.permutation(segment)[:count]] = True
    return _as_removal(compiled, partition.close(dead))


def _gone(compiled: CompiledModel) -> Ids:
    """Components that earlier rounds removed."""
    analysis = compiled.analysis
    dead = np.zeros(analysis.partition.num_components, bool)
    for name, axes in compiled.removal.removed.items():
        for axis, indices in axes.items():
            labels = analysis.labels[name][axis]
            assert labels is not None
            dead[analysis.partition.component[labels[indices]]] = True
    return dead


def _as_removal(compiled: CompiledModel, dead: Ids) -> Removal:
    removed: dict[str, dict[int, Ids]] = {}
    for axis in compiled.couplings.axes:
        indices = np.flatnonzero(dead[axis.components])
        if len(indices):
            removed.setdefault(axis.parameter, {})[axis.axis] = indices
    return Removal({name: compiled.couplings.shapes[name] for name in removed}, removed)
