"""Stacks: which parameters hold matrices (experts, heads) that can each lose indices of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import fx

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.passes.routing import short_name
from ecospa_fx.passes.shared_rows import components_on, extents, shared_rows, stacked_only, summed
from ecospa_fx.program import Analysis
from ecospa_fx.stacks import Stack

_SAME_MATRICES = frozenset(
    {"transpose", "permute", "swapaxes", "mT", "to", "_to_copy", "clone", "contiguous"}
)
_VIEWS = frozenset(
    {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "t", "numpy_T"}
)
_TAKES_MATRICES = frozenset(
    {"grouped_mm_fallback", "_grouped_mm", "bmm", "matmul", "baddbmm", "einsum"}
    | {"select", "unbind", "index", "_unsafe_index", "index_select"}
)
_PRODUCTS = frozenset({"linear", "mm", "addmm", "tensordot"})
_TAKES_ROWS = frozenset({"select", "unbind", "index", "_unsafe_index", "index_select", "unsqueeze", "add"})


def stacked_axes(analysis: Analysis, graph: CouplingGraph) -> dict[str, Stack]:
    """Find the axes along which each matrix of a stack can choose for itself.

    In a first analysis an axis has one label per index, which all matrices share. Where a parameter is
    only used matrix by matrix, and such an axis is one of hidden units, a second analysis gives each matrix
    labels of its own. Matrices stand along the axis whose labels are the same in all parameters that hold
    the hidden units; where none is, and the input picks the matrices, along axis 0.

    Args:
        analysis: the first analysis.
        graph: its couples.

    Returns:
        Parameter name → its axes; at most one pair for each parameter.
    """
    seen_through = _uses(analysis, _SAME_MATRICES | _VIEWS)
    found = shared_rows(
        analysis,
        graph,
        [n for n, used in seen_through.items() if used <= _TAKES_MATRICES | _PRODUCTS],
        [n for n, used in seen_through.items() if used <= _TAKES_ROWS],
    )
    return {**_picked(analysis, graph, found), **found}


def in_vain(
    analysis: Analysis,
    graph: CouplingGraph,
    stacked: Mapping[str, Stack],
    found: tuple[CouplingGraph, Analysis],
) -> set[str]:
    """The stacks that are none the better for labels of their own: fewer indices are free, or all agree.

    Args:
        analysis: the analysis without stacks.
        graph: its couples.
        stacked: stacks that were tried.
        found: what came of it.

    Returns:
        Their names, with all that hold the same hidden units. Along axis 0 matrices may agree.
    """
    lost: set[int] = set()
    for axis in (a for a in found[0].axes if a.stack):
        before = components_on(analysis, axis.parameter, axis.axis)
        table = axis.components.reshape(axis.rows, -1)
        free = [(g.couple_of[c] >= 0).mean() for g, c in ((graph, before), (found[0], table))]
        agree = stacked[axis.parameter].rows > 0 and bool((table == table[:1]).all())
        lost |= set(before.tolist()) if agree or free[1] < free[0] or not free[1] else set()
    return {n for n, s in stacked.items() if lost & set(components_on(analysis, n, s.axis).tolist())}


def _picked(analysis: Analysis, graph: CouplingGraph, known: Mapping[str, Stack]) -> dict[str, Stack]:
    """Stacks whose matrices stand along axis 0, beside those that are known."""
    uses = _uses(analysis, _SAME_MATRICES)
    found = {**dict(_matrices(analysis, graph, uses)), **{n: s.axis for n, s in known.items()}}
    biases = {n for n, used in uses.items() if extents(analysis, n) == 2 and used <= _TAKES_ROWS} - {*known}
    alone = stacked_only(analysis, found)
    found = {n: a for n, a in found.items() if n not in known and alone[components_on(analysis, n, a)].all()}
    heights = {analysis.program.parameters[n][0] for n in found}
    fitting = (n for n in biases if analysis.program.parameters[n][0] in heights)
    last = {n: len(analysis.labels[n]) - 1 for n in fitting}
    found |= {n: a for n, a in last.items() if alone[components_on(analysis, n, a)].all()}
    return {n: Stack(0, a) for n, a in found.items()}


def _matrices(
    analysis: Analysis, graph: CouplingGraph, uses: Mapping[str, set[str]]
) -> Iterator[tuple[str, int]]:
    shared = np.array([c.kind in ("residual", "head") for c in graph.couples] + [True])
    for name, used in uses.items():
        shape = analysis.program.parameters[name]
        if len(shape) == 3 and shape[0] > 1 and used <= _TAKES_MATRICES:
            free = [
                a
                for a in (1, 2)
                if not shared[graph.couple_of[components_on(analysis, name, a)]].all()
                and summed(analysis, name, a) >= summed(analysis, name, 0)
            ]
            if free:
                yield name, max(free, key=lambda a: shape[a])


def _uses(analysis: Analysis, through: frozenset[str]) -> dict[str, set[str]]:
    """Short names of the operators that read each parameter, beyond those that it is seen through."""
    found: dict[str, set[str]] = {}
    for node in analysis.program.graph.nodes:
        if node.op == "get_attr" and str(node.target) in analysis.labels:
            found.setdefault(str(node.target), set()).update(_readers(node, through))
    return found


def _readers(node: fx.Node, through: frozenset[str]) -> Iterator[str]:
    for user in node.users:
        name = short_name(user.target) if user.op == "call_function" else user.op
        if name in through:
            yield from _readers(user, through)
        else:
            yield "add" if _as_bias(node, user, name) else name


def _as_bias(node: fx.Node, user: fx.Node, name: str) -> bool:
    """Whether a product adds a tensor to its result."""
    place = {"linear": 2, "addmm": 0}.get(name)
    return place is not None and user.args[place : place + 1] == (node,)
