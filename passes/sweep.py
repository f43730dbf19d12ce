"""Sweep: what nobody reads goes."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx


def sweep(graph: fx.Graph, impure: Callable[[fx.Node], bool] = fx.Node.is_impure) -> bool:
    """Erase nodes without users, in place; those that do something else stay.

    As ``Graph.eliminate_dead_code``, which checks the whole graph each time and asks of every node whether it
    is pure, also of those that are read.

    Args:
        graph: in an order in which it can run.
        impure: whether a node does more than to give a value.

    Returns:
        Whether anything went.
    """
    before = len(graph.nodes)
    for node in reversed(graph.nodes):
        if not node.users and not impure(node):
            graph.erase_node(node)
    return len(graph.nodes) < before
