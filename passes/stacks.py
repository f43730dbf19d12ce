"""Stacks: which parameters hold matrices (experts, heads) that can each lose indices of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import fx

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.labels import Tag
from ecospa_fx.passes.routing import short_name
from ecospa_fx.program import Analysis

_SAME_MATRICES = frozenset(
    {"transpose", "permute", "swapaxes", "mT", "to", "_to_copy", "clone", "contiguous"}
)
_TAKES_MATRICES = frozenset(
    {"grouped_mm_fallback", "_grouped_mm", "bmm", "matmul", "baddbmm", "einsum"}
    | {"select", "unbind", "index", "_unsafe_index", "index_select"}
)
_TAKES_ROWS = frozenset({"select", "unbind", "index", "_unsafe_index", "index_select", "unsqueeze", "add"})


def stacked_axes(analysis: Analysis, graph: CouplingGraph) -> dict[str, int]:
    """Find the axes along which each matrix of a stack can choose for itself.

    In a first analysis an axis has one label per index, which all matrices share. Where a parameter is
    only used matrix by matrix, and such an axis is one of hidden units, a second analysis gives each matrix
    labels of its own.

    Args:
        analysis: the first analysis.
        graph: its couples.

    Returns:
        Parameter name → axis; at most one for each parameter.
    """
    uses = _uses(analysis)
    found = dict(_matrices(analysis, graph, uses))
    biases = {n for n, used in uses.items() if _extents(analysis, n) == 2 and used <= _TAKES_ROWS}
    alone = _stacked_only(analysis, found)
    found = {n: a for n, a in found.items() if alone[_on(analysis, n, a)].all()}
    heights = {analysis.program.parameters[n][0] for n in found}
    fitting = (n for n in biases if analysis.program.parameters[n][0] in heights)
    last = {n: len(analysis.labels[n]) - 1 for n in fitting}
    return found | {n: a for n, a in last.items() if alone[_on(analysis, n, a)].all()}


def _extents(analysis: Analysis, name: str) -> int:
    """How many axes of a parameter hold more than one index; a bias may keep one of size 1 for the tokens."""
    axes = analysis.labels[name]
    return len(axes) - sum(ids is None for ids in axes[1:-1])


def _matrices(
    analysis: Analysis, graph: CouplingGraph, uses: Mapping[str, set[str]]
) -> Iterator[tuple[str, int]]:
    residual = np.array([c.kind == "residual" for c in graph.couples] + [True])
    for name, used in uses.items():
        shape = analysis.program.parameters[name]
        if len(shape) == 3 and shape[0] > 1 and used <= _TAKES_MATRICES:
            free = [
                a
                for a in (1, 2)
                if not residual[graph.couple_of[_on(analysis, name, a)]].all()
                and _summed(analysis, name, a) >= _summed(analysis, name, 0)
            ]
            if free:
                yield name, max(free, key=lambda a: shape[a])


def _summed(analysis: Analysis, name: str, axis: int) -> bool:
    """Whether a product sums over an axis: over that of the matrices only together with the hidden one."""
    ids = analysis.labels[name][axis]
    return ids is not None and bool(analysis.partition.label_tags[ids[0]] & Tag.CONTRACTED)


def _stacked_only(analysis: Analysis, found: Mapping[str, int]) -> np.ndarray:
    """Whether each component lies on such axes, and in no other box: bool, shape ``[components]``."""
    inside, outside = (np.zeros(analysis.partition.num_components, bool) for _ in range(2))
    for name, labels in analysis.labels.items():
        for axis in range(len(labels)) if _extents(analysis, name) > 2 else ():
            (inside if found.get(name) == axis else outside)[_on(analysis, name, axis)] = True
    return inside & ~outside


def _on(analysis: Analysis, name: str, axis: int) -> np.ndarray:
    ids = analysis.labels[name][axis]
    return np.zeros(0, np.int64) if ids is None else analysis.partition.component[ids]


def _uses(analysis: Analysis) -> dict[str, set[str]]:
    """Short names of the operators that read each parameter, seen through those that keep its matrices."""
    found: dict[str, set[str]] = {}
    for node in analysis.program.graph.nodes:
        if node.op == "get_attr" and str(node.target) in analysis.labels:
            found.setdefault(str(node.target), set()).update(_readers(node))
    return found


def _readers(node: fx.Node) -> Iterator[str]:
    for user in node.users:
        name = short_name(user.target) if user.op == "call_function" else user.op
        if name in _SAME_MATRICES:
            yield from _readers(user)
        else:
            yield name
