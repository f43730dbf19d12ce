"""Expert energy: what the hidden units of each expert carry into the product that sums over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ecospa_fx.labels import Ids, LabelArray, Nature, Tag
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import Call, Join, item


def consumed_by_expert(
    analysis: Analysis, dead: Ids, call: Call, values: Mapping[str, Any], picks: torch.Tensor
) -> tuple[Ids, Ids] | None:
    """``E[x_j²] ‖W_e[:, j]‖²`` over all tokens, zero for those that expert ``e`` does not see.

    Args:
        analysis: the dense program and its labels.
        dead: dead labels, bool, shape ``[labels]``.
        call: a product with matrices that the input picks.
        values: its operands now, by name.
        picks: which matrix each row meets, or the ends of their runs for a grouped product.

    Returns:
        Components and their energies, one shape; None where the call sums over no hidden units.
    """
    grouped = call.routed_by == "offs"
    for join in [_grouped(call)] if grouped else [j for j in call.joins if not j.gather]:
        sides = [(name, axes, item(call.args, name)) for name, axes in join.operands]
        if len(sides) != 2 or Nature.ACTIVATION not in (natures := [v.nature for _, _, v in sides]):
            continue
        x = sides[natures.index(Nature.ACTIVATION)]
        w = sides[1 - natures.index(Nature.ACTIVATION)]
        for array in w[2].arrays:
            hidden = _hidden(analysis, array)
            if hidden is not None and w[1][hidden[1]] in x[1]:
                rows, axis = hidden
                left = (~dead[rows]).any(1)  # experts that are gone have no row, and are never picked
                tensors = item(values, w[0]), item(values, x[0])
                energy = _energy(tensors, (w[1], x[1]), axis, picks.flatten(), left, grouped)
                rows = rows[left]
                alive = rows[~dead[rows]].reshape(len(rows), -1)
                return analysis.partition.component[alive], energy
    return None


def _grouped(call: Call) -> Join:
    names = list(call.args)
    return Join(call.out, ((names[0], (0, 3)), (names[1], (2, 3, 1))), False)


def _hidden(analysis: Analysis, array: LabelArray) -> tuple[Ids, int] | None:
    """Labels ``[experts, size]`` of hidden units that a product sums over, and their axis."""
    axis = max(array.axes)
    if not analysis.partition.label_tags[array.ids.flat[0]] & Tag.CONTRACTED:
        return None
    every = array.ids if len(array.axes) == 2 else analysis.space.stacks.every_row(array.ids)
    return None if every is None else (every.reshape(-1, array.ids.shape[axis]), axis)


def _energy(tensors: tuple[torch.Tensor, torch.Tensor], axes: tuple[tuple[int, ...], tuple[int, ...]],
            hidden: int, picks: torch.Tensor, left: Ids, grouped: bool) -> Ids:  # fmt: skip
    """Energies of the indices of experts that are left, ``[experts, kept]``."""
    (w, x), (at_w, at_x) = tensors, axes
    lead = [] if grouped else list(range(w.dim() - 2))
    kept = [0, hidden] if grouped else [*lead, hidden]
    weight = w.float().square().sum([a for a in range(w.dim()) if a not in kept])
    places = [*([0] if grouped else [at_w[a] for a in lead]), at_w[hidden]]
    rows = _placed(x.float().square(), at_x, places)
    rows = rows if grouped else weight * rows
    rows = rows.reshape(-1, rows.shape[-1])
    if grouped and len(picks) != len(rows):
        picks = torch.searchsorted(picks, torch.arange(len(rows), device=picks.device), right=True)
    place = torch.from_numpy(np.maximum(np.cumsum(left) - 1, 0)).to(picks.device)
    total = rows.new_zeros(int(left.sum()), rows.shape[-1]).index_add(0, place[picks], rows) / len(rows)
    return np.asarray((total * weight if grouped else total).double().cpu().numpy())


def _placed(x: torch.Tensor, axes: tuple[int, ...], places: list[int]) -> torch.Tensor:
    """The mean of ``x`` over all axes but those at ``places``, in their order; size 1 where there is none."""
    others = [i for i, p in enumerate(axes) if p not in places]
    left = [p for p in axes if p in places]
    x = x.mean(others) if others else x
    x = x.permute([left.index(p) for p in places if p in left])
    return x[tuple(slice(None) if p in left else None for p in places)]
