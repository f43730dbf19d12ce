"""Routers: find who picks experts, and mark a program so that whole experts can go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import fx

from ecospa_fx import routers as marks
from ecospa_fx.coupling import common_path
from ecospa_fx.diagnosis import source_line
from ecospa_fx.labels import Reason
from ecospa_fx.passes.ballot import COPIES, Election
from ecospa_fx.passes.ballots import HIGHEST, Ballots
from ecospa_fx.passes.propagate import target_name
from ecospa_fx.passes.routing import short_name
from ecospa_fx.program import Program
from ecospa_fx.routers import Router

_LOOKUPS = frozenset({"index", "_unsafe_index", "index_select"})
_GROUPED = frozenset({"_grouped_mm", "grouped_mm_fallback"})


def with_routers(program: Program) -> Program:
    """Mark what routers decide.

    Requires that values along an axis of experts keep their dense numbering everywhere. Ensures that the
    markers are all that tells a removal of experts: scores are minus infinity for those that are gone
    wherever the highest are taken, so that none of them is ever picked.

    Args:
        program: a captured program; it is not changed.

    Returns:
        A program with markers, or the same one where no router picks from stacked parameters.
    """
    if not _may_route(program.graph):
        return program
    ballots = Ballots(program.graph)
    readers = _readers(program, ballots)
    if not readers:
        return program
    found = {product: _router(number, ballots.elections[product], uses, program, ballots)
             for number, (product, uses) in enumerate(readers.items())}  # fmt: skip
    return replace(
        program, graph=_marked(program.graph, ballots, found, readers), routers=tuple(found.values())
    )


def _may_route(graph: fx.Graph) -> bool:
    """Whether there is anything that takes the highest scores, and anything that picks by number."""
    names = {short_name(n.target) for n in graph.nodes if n.op == "call_function"}
    return bool(names & HIGHEST) and bool(names & (_GROUPED | _LOOKUPS))


@dataclass(eq=False)
class _Uses:
    """Where one router's numbers pick matrices: the node, the node of the numbers, and the parameter."""

    lookups: list[tuple[fx.Node, fx.Node, str]] = field(default_factory=list)


def _readers(program: Program, ballots: Ballots) -> dict[fx.Node, _Uses]:
    found: dict[fx.Node, _Uses] = {}
    for node in program.graph.nodes:
        by = _picked_by(node)
        ballot = ballots.known.get(by) if by is not None else None
        if by is None or ballot is None or ballot.kind not in ("ids", "ends"):
            continue
        name = _parameter(node.args[1 if ballot.kind == "ends" else 0])
        if program.parameters.get(name, (0,))[0] == ballots.elections[ballot.router].experts:
            found.setdefault(ballot.router, _Uses()).lookups.append((node, by, name))
    return found


def _picked_by(node: fx.Node) -> fx.Node | None:
    """The numbers by which a node picks matrices of a tensor, or the ends of their runs."""
    name = short_name(node.target) if node.op == "call_function" else ""
    by: Any = None
    if name in _GROUPED:
        by = node.kwargs.get("offs", node.args[2] if len(node.args) > 2 else None)
    elif name == "index_select" and node.args[1] == 0:
        by = node.args[2]
    elif name in _LOOKUPS - {"index_select"} and len(node.args[1]) == 1:  # type: ignore[arg-type]
        by = node.args[1][0]  # type: ignore[index]
    return by if isinstance(by, fx.Node) else None


def _parameter(node: Any) -> str:
    """The parameter whose matrices, perhaps turned, a node holds; empty for anything else."""
    while node.op == "call_function" and _keeps_rows(node):
        node = node.args[0]
    return str(node.target) if node.op == "get_attr" else ""


def _keeps_rows(node: fx.Node) -> bool:
    """Whether a node holds the matrices of its input, in their order."""
    name = short_name(node.target)
    rank = node.meta["val"].dim() if isinstance(node.meta.get("val"), torch.Tensor) else 0
    args: Any = node.args
    if name in ("transpose", "swapaxes"):
        return all(a % rank for a in args[1:3])
    if name == "permute":
        return bool(args[1][0] % rank == 0)
    return name in COPIES or (name == "mT" and rank > 2)


def _router(number: int, election: Election, uses: _Uses, program: Program, ballots: Ballots) -> Router:
    stacks = tuple(dict.fromkeys(name for _, _, name in uses.lookups))
    problem = election.problem or next(_others(program, stacks, ballots), None)
    flat = [(k, room) for parts, k, room in election.highest.values() if parts == 1]
    inner = [(parts, k) for parts, k, _ in election.highest.values() if parts > 1]
    if problem is None and (any(room == 0 for _, room in flat) or len({p for p, _ in inner}) > 1):
        problem = next(iter(election.highest)), "how many experts are left to choose from is not known"
    parts, chosen = (inner[0][0] if inner else 1), max(k for k, _ in flat)
    least = max([ceil(k / (room or parts)) for k, room in flat] + [k for _, k in inner])
    reason = None
    if problem is not None:
        node, text = problem
        reason = Reason(f"experts stay: {text}", target_name(node), node.name, source_line(node))
    name = common_path(list(stacks)) or stacks[0]
    return Router(number, name, election.experts, chosen, parts, least, stacks, reason)


def _others(program: Program, stacks: tuple[str, ...], ballots: Ballots) -> Iterator[tuple[fx.Node, str]]:
    """Whoever reads the stacks in another way than by numbers of experts."""
    for node in program.graph.nodes:
        if node.op == "get_attr" and str(node.target) in stacks:
            for reader in _read(node):
                by = _picked_by(reader) if reader.op == "call_function" else None
                if by is None or by not in ballots.known or ballots.known[by].kind not in ("ids", "ends"):
                    yield reader, "their weights are read in another way than by number"


def _read(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "call_function" and _keeps_rows(user):
            yield from _read(user)
        else:
            yield user


def _marked(graph: fx.Graph, ballots: Ballots, found: Mapping[fx.Node, Router],
            readers: Mapping[fx.Node, _Uses]) -> fx.Graph:  # fmt: skip
    """A copy of the graph with markers."""
    free = {product: router for product, router in found.items() if router.refused is None}
    picks = {node: (by, free[p]) for p, uses in readers.items() if p in free for node, by, _ in uses.lookups}
    highest = {n: (free[p], parts) for p in free for n, (parts, _, _) in ballots.elections[p].highest.items()}
    marker = _Marker(graph)
    for node in graph.nodes:
        if node in picks:
            by, router = picks[node]
            kind = marks.run_ends if ballots.known[by].kind == "ends" else marks.renumbered
            marker.copy(node, by, kind, router.number, router.experts)
        elif node in highest:
            router, parts = highest[node]
            marker.copy(node, node.args[0], marks.electable, router.number, router.experts, parts)
        else:
            marker.copy(node)
        if node in free:
            router = free[node]
            marker.env[node] = marker.mark(node, marks.router_logits, router.number, router.experts)
    return marker.graph


class _Marker:
    """Copies a graph node by node."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self._made: dict[tuple[Any, ...], fx.Node] = {}

    def copy(self, node: fx.Node, operand: Any = None, target: Any = None, *args: int) -> None:
        """Copy a node; with ``operand``, it reads that through a marker."""
        marked = None if operand is None else self.mark(operand, target, *args)

        def lookup(n: fx.Node) -> fx.Node:
            return marked if n is operand and marked is not None else self.env[n]

        self.env[node] = copied = self.graph.node_copy(node, lookup)
        copied.meta = dict(node.meta)

    def mark(self, node: fx.Node, target: Any, *args: int) -> fx.Node:
        """A marker behind a node, one for all who read it."""
        key = (node, target, *args)
        if key not in self._made:
            made = self.graph.call_function(target, (self.env[node], *args))
            made.meta = {k: v for k, v in node.meta.items() if k != "dense"}
            self._made[key] = made
        return self._made[key]
