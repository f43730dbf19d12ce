"""Consumers: where a graph sums over the inputs of a weight, and what comes beside it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from ecospa_fx.labels import Nature
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import item
from ecospa_fx.sizes import same_sizes


@dataclass(frozen=True)
class Consumer:
    """Where a graph sums over the inputs of a weight.

    Attributes:
        weight: name of a matrix.
        axis: its axis of inputs.
        bias: name of what is added, if that is a parameter.
        call: the node of the dense program.
        operand: name of the argument that holds the inputs.
        along: the axis of that argument which is summed over.
        beside: the node of the dense program that the product is added to, if it is an activation of the same
            shape (a residual stream).
    """

    weight: str
    axis: int
    bias: str | None
    call: fx.Node
    operand: str
    along: int
    beside: fx.Node | None = None


def consumers(analysis: Analysis, names: Mapping[str, int]) -> Iterator[Consumer]:
    """Products of an activation with a whole matrix, in the order of the program.

    Args:
        analysis: the labels.
        names: matrix → its axis of inputs.
    """
    held = {n: analysis.labels[n][a] for n, a in names.items() if n in analysis.labels}
    labels = {n: ids for n, ids in held.items() if ids is not None and ids.ndim == 1}
    known = {int(ids[0]): n for n, ids in labels.items()}
    for node, call in analysis.calls.items():
        for join in call.joins:
            sides = [(name, axes, item(call.args, name)) for name, axes in join.operands]
            natures = [value.nature for _, _, value in sides]
            if join.gather or sorted(natures) != [Nature.WEIGHT, Nature.ACTIVATION]:
                continue
            at = natures.index(Nature.WEIGHT)
            (_, axes, value), (other, places, _) = sides[at], sides[1 - at]
            for array in value.arrays if value.rank == 2 else ():
                name = known.get(int(array.ids.flat[0]))
                (axis, *more) = array.axes
                if name is None or more or not np.array_equal(array.ids.ravel(), labels[name]):
                    continue
                if axes[axis] in places:
                    yield Consumer(name, names[name], _bias(analysis, node), node, other,
                                   places.index(axes[axis]), _beside(node))  # fmt: skip


def _bias(analysis: Analysis, node: fx.Node) -> str | None:
    """The parameter that a fused product adds to its result."""
    args = named_arguments(node, lambda n: n)
    added = args.get("bias", args.get("self") if "addmm" in str(node.target) else None)
    if not isinstance(added, fx.Node) or added.op != "get_attr":
        return None
    return str(added.target) if str(added.target) in analysis.program.parameters else None


def _beside(product: fx.Node) -> fx.Node | None:
    """What the product is added to; None where something else becomes of it first."""
    node = product
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is torch.ops.aten.add.Tensor and not user.kwargs:
            other = next((a for a in user.args if a is not node), None)
            if isinstance(other, fx.Node) and other.op != "get_attr":
                return other if same_sizes(_shape(other), _shape(user)) else None
        elif user.target not in _SAME_ROWS:
            return None
        node = user
    return None


_SAME_ROWS = (
    torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten.dropout.default,
    torch.ops.aten.clone.default, torch.ops.aten.contiguous.default
)  # fmt: skip
"""Operators that keep rows, in their order."""


def _shape(node: fx.Node) -> Sequence[int | torch.SymInt]:
    shape: Sequence[int | torch.SymInt] = getattr(node.meta.get("val"), "shape", ())
    return shape
