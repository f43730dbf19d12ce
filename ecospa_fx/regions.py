"""Regions: the parts of a graph that belong to one call of one block.

``torch.export`` writes on every node from within which modules it was traced. The nodes of one call of a
block make a region, if the rest of the graph can run before it or after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

IMPURE = (torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast)
Owners = dict[fx.Node, str]


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes of one call of a block.

    Attributes:
        block: name of the block.
        nodes: in the order of the graph; parameters and constants are not among them.
        inputs: values that come from outside, in the order in which they are first used.
        outputs: values that are used outside, the last one first: that is the block's own result.
    """

    block: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class Regions:
    """A graph in parts.

    Attributes:
        order: nodes outside of every region, and regions, in an order in which they can run.
        refused: name of a block to why its nodes make no region.
    """

    order: tuple[fx.Node | Region, ...]
    refused: Mapping[str, str]


def regions(graph: fx.Graph, blocks: Collection[str]) -> Regions:
    """Tell the calls of blocks apart.

    Args:
        graph: a flat graph, whose nodes carry ``nn_module_stack``.
        blocks: names of the modules that are to be called.
    """
    owners, of = _owners(graph, frozenset(blocks))
    refused: dict[str, str] = {}
    while True:
        found = {call: _region(of[call], nodes) for call, nodes in _calls(owners).items()}
        wrong = next(((c, why) for c, r in found.items() if (why := _obstacle(r, owners, c))), None)
        if wrong is None:
            order, cyclic = _order(graph, owners, found)
            if cyclic is None:
                return Regions(tuple(order), refused)
            wrong = cyclic, "it takes turns with operators outside: each needs a result of the other"
        call, refused[of[call]] = wrong
        owners = {n: c for n, c in owners.items() if of[c] != of[call]}


def _owners(graph: fx.Graph, blocks: frozenset[str]) -> tuple[Owners, dict[str, str]]:
    """For every node of a block the call that it belongs to; and for every call its block."""
    owners: Owners = {}
    of: dict[str, str] = {}
    emitted: list[fx.Node] = []  # by a rewrite, on the way to the next node that was traced
    for node in graph.nodes:
        if node.op in ("get_attr", "placeholder", "output"):
            continue
        stack = node.meta.get("nn_module_stack")
        if stack is None:
            emitted.append(node)
            continue
        call = next((key for key, (path, _) in stack.items() if path.partition("@")[0] in blocks), None)
        if is_size(node) and not (call is not None and owners.get(node.all_input_nodes[0]) == call):
            continue  # a size of what comes from outside
        if call is not None:
            of[call] = stack[call][0].partition("@")[0]
            owners.update(dict.fromkeys([*emitted, node], call))
        emitted.clear()
    for node in [n for n in owners if "nn_module_stack" not in n.meta]:
        if _shared(node, owners) and not any(owners.get(a) == owners[node] for a in node.all_input_nodes):
            del owners[node]  # a table that a rewrite gathers once for all blocks comes from outside
    return owners, of


def _shared(node: fx.Node, owners: Owners) -> bool:
    """Whether another block uses what a rewrite has emitted for this one."""
    return any(
        owners.get(user) != owners[node] or ("nn_module_stack" not in user.meta and _shared(user, owners))
        for user in node.users
    )


def _calls(owners: Owners) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    for node, call in owners.items():
        calls.setdefault(call, []).append(node)
    return calls


def _region(block: str, nodes: list[fx.Node]) -> Region:
    inside, nodes = set(nodes), sorted(nodes)
    taken = [a for n in nodes for a in n.all_input_nodes if a not in inside and a.op != "get_attr"]
    given = [n for n in nodes if any(u not in inside for u in n.users)]
    return Region(block, tuple(nodes), tuple(dict.fromkeys(taken)), tuple(reversed(given)))


def _obstacle(region: Region, owners: Owners, call: str) -> str | None:
    """Why a region cannot be called by itself, as far as it shows from within."""
    if not region.outputs or all(_size_of(n) is not None for n in region.inputs):
        return "nothing goes through it"
    node, last = region.nodes[0], region.nodes[-1]
    while node is not last:
        if owners.get(node) != call and is_impure(node):
            return f"{node.name}, outside of it, has to run between its operators"
        node = node.next
    return None


def is_size(node: fx.Node) -> bool:
    """Whether a node reads one size of a tensor."""
    return node.target is torch.ops.aten.sym_size.int


def is_impure(node: fx.Node) -> bool:
    """Whether the order of an operator counts beyond its results."""
    target = node.target
    return target in IMPURE or (isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable)


def _size_of(node: fx.Node) -> object:
    """The expression of a size, None for a tensor."""
    value: Any = node.meta.get("val")
    return value.node.expr if hasattr(value, "node") else value if isinstance(value, int) else None


def size_sources(region: Region) -> dict[fx.Node, tuple[fx.Node, int]]:
    """For sizes among the inputs of a region: a tensor among them, and its axis, that has this size."""
    found: dict[fx.Node, tuple[fx.Node, int]] = {}
    for size in region.inputs:
        wanted = _size_of(size)
        place = next((p for p, n in _axes(region) if n == wanted), None) if wanted is not None else None
        if place is not None:
            found[size] = place
    return found


def _axes(region: Region) -> Iterator[tuple[tuple[fx.Node, int], object]]:
    for node in region.inputs:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if hasattr(size, "node"):  # symbolic
                    yield (node, axis), size.node.expr


def _order(
    graph: fx.Graph, owners: Owners, found: Mapping[str, Region]
) -> tuple[list[fx.Node | Region], str | None]:
    """An order in which everything can run; or a call that would need itself."""
    order: list[fx.Node | Region] = []
    done: set[fx.Node] = set()
    for start in graph.nodes:
        todo = [start]
        while todo:
            node = todo[-1]
            region = found.get(owners.get(node, ""))
            needed = region.inputs if region is not None else node.all_input_nodes
            missing = [n for n in needed if n not in done and n.op != "get_attr"]
            if node in done or not missing:
                if node not in done:
                    order.append(node if region is None else region)
                    done.update([node] if region is None else region.nodes)
                todo.pop()
            elif len(todo) > len(graph.nodes):
                return order, next(owners[n] for n in reversed(todo) if n in owners)
            else:
                todo.append(missing[0])
    return order, None
