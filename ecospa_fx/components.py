"""Connected components of labels, and the implications between them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ecospa_fx.arrays import distinct

Ids = np.ndarray


def components(size: int, left: Ids, right: Ids) -> Ids:
    """Number of the component of each of ``size`` labels, of which those at the same place are united."""
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64) if size else left


def condense(component: Ids, coarse: Ids, fine: Ids) -> tuple[Ids, Ids, Ids]:
    """Implications between components: without doubles, and acyclic."""
    if not len(coarse):
        return component, coarse, fine
    count = int(component.max()) + 1
    edges = distinct(component[coarse] * count + component[fine])
    up, down = edges // count, edges % count
    graph = coo_array((np.ones(len(up), np.int8), (up, down)), shape=(count, count))
    strong = np.asarray(connected_components(graph, directed=True, connection="strong")[1], np.int64)
    edges = distinct(strong[up] * count + strong[down])
    up, down = edges // count, edges % count
    return strong[component], up[up != down], down[up != down]


def taken_along(dead: Ids, chosen: Ids, coarse: Ids, fine: Ids) -> Ids:
    """A copy of ``dead`` with all that only experts in it hold.

    Args:
        dead: bool, shape ``[components]``.
        chosen: which components are experts, same shape.
        coarse: left sides of the implications.
        fine: right sides.
    """
    dead, under = dead.copy(), chosen[coarse]
    held = np.zeros(len(dead), bool)
    held[fine[under & ~dead[coarse]]] = True
    lost = fine[under & dead[coarse]]
    dead[lost[~held[lost]]] = True
    return dead


def held_experts(pin: Ids, chosen: Ids, coarse: Ids, fine: Ids) -> Ids:
    """Experts stay where what they alone would take along has to, or a row of another stack that holds it.

    Args:
        pin: reason why a component is frozen, -1 for none, shape ``[components]``.
        chosen: which components are experts, same shape.
        coarse: left sides of the implications.
        fine: right sides.

    Returns:
        ``pin`` with their reasons.
    """
    under = chosen[coarse]
    if not under.any():
        return pin
    reason, pin = pin.copy(), pin.copy()
    rows = ~under & (pin[coarse] >= 0)
    reason[fine[rows]] = np.maximum(reason[fine[rows]], pin[coarse[rows]])
    alone = np.bincount(fine[under], minlength=len(pin)) == 1
    stuck = under & alone[fine] & (reason[fine] >= 0) & (pin[coarse] < 0)
    pin[coarse[stuck]] = reason[fine[stuck]]
    return pin
