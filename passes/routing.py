"""Routing: values that stand for those of whichever expert the input picks, followed through the graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx.labels import Ids, LabelArray, LabelSpace
from ecospa_fx.rules.call import Call, Join, Pick, arrays_of, item

PLAIN = frozenset({"contiguous", "clone", "alias", "to", "_to_copy", "detach"})
"""Operators that give the values of the one tensor that they read, place by place."""
_VIEWS = frozenset(
    {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "clone", "contiguous", "alias"}
)
_CASTS = frozenset({"to", "_to_copy"})
_MARKS = frozenset({"renumbered", "run_ends"})
_TURNS = frozenset({"transpose", "permute", "mT", "swapaxes"})
_PICKS = frozenset({"slice", "split", "split_with_sizes", "chunk", "narrow"})
_PRODUCTS = frozenset({"bmm", "matmul", "einsum"})
_COUNTS = frozenset({"histc", "bincount"})


class Routing:
    """Follows which input picked the matrices behind a value.

    Labels of such a value are those of the first matrix and stand for all (see
    :class:`~ecospa_fx.stacks.Stacks`). That holds as long as nothing tells one hidden index from another,
    and as long as values meet only where the same matrices were picked; else all matrices have to agree.

    Args:
        space: receives the facts.
        values: what is known of each node so far.
    """

    def __init__(self, space: LabelSpace, values: Mapping[fx.Node, Any]) -> None:
        self.space, self.values = space, values
        self.picked: dict[fx.Node, fx.Node] = {}

    def follow(self, node: fx.Node, call: Call) -> None:
        """Look at one call, once its rule has run."""
        if not (call.routed_by or self.space.stacks.routed):
            return
        inputs = node.all_input_nodes
        standing = [n for n in inputs if any(map(self._stands_in, arrays_of(self.values.get(n))))]
        if not standing and not call.routed_by:
            return
        origins = {self.picked.get(n) for n in standing}
        if call.routed_by:
            origins.add(_origin(_argument(node, call.routed_by)))
        if len(origins) == 1 and None not in origins and self._blind(node, call):
            self.picked[node] = next(iter(origins))  # type: ignore[assignment]
            return
        for array in (a for n in standing for a in arrays_of(self.values.get(n)) if self._stands_in(a)):
            self.space.agree(array.ids)

    def output(self, node: fx.Node) -> None:
        """One output of several."""
        source = node.args[0]
        if source in self.picked:
            self.picked[node] = self.picked[source]  # type: ignore[index]

    def _stands_in(self, array: LabelArray) -> bool:
        return self.space.stacks.every_row(array.ids) is not None

    def _blind(self, node: fx.Node, call: Call) -> bool:
        """Whether the call treats all hidden indices alike, and leaves the order of what was routed."""
        name = short_name(node.target)
        if call.routed_by or name in _VIEWS | _CASTS:
            return True
        if name in _TURNS:
            return self._keeps_order(call)
        if name in _PICKS:
            return all(self._even(call, pick) for pick in call.picks)
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        return (pointwise or name in _PRODUCTS) and all(self._alike(call, join) for join in call.joins)

    def _keeps_order(self, call: Call) -> bool:
        """Whether axes without labels stay in order: the tokens."""
        before = [n for a, n in enumerate(call.value("self").shape) if not call.value("self").on(a) and n > 1]
        after = [n for a, n in enumerate(call.out.shape) if not call.out.on(a) and n > 1]
        return before == after and (len(set(before)) == len(before))

    def _alike(self, call: Call, join: Join) -> bool:
        """Whether no operand brings entries of its own for the hidden indices of others."""
        hidden = {axis for array in join.joint.arrays if self._stands_in(array) for axis in array.axes}
        for name, axes in join.operands:
            value = item(call.args, name)
            own = {axes[a] for array in value.arrays if self._stands_in(array) for a in array.axes}
            if any(n > 1 and axes[a] in hidden - own for a, n in enumerate(value.shape)):
                return False
            tokens = [p for p in axes if own and p not in own and p < call.out.rank]
            if tokens != sorted(tokens):
                return False
        return True

    def _even(self, call: Call, pick: Pick) -> bool:
        """Whether all matrices keep as many of a range of indices; every second one means pairs that stay."""
        arrays = [a for a in call.value(pick.operand).arrays if self._stands_in(a) and pick.axis in a.axes]
        step = np.diff(pick.source)
        if not arrays or pick.drop or any(len(a.axes) > 1 for a in arrays) or (step != step[:1]).any():
            return False
        for array in arrays:
            every = int(step[0]) if len(step) else 1
            line = array.ids.ravel()
            if every < 1 or (every > 1 and (len(line) % every or len(pick.source) * every != len(line))):
                return False
            self._blocks(line, every)
            self.space.stacks.parts.append(line[: pick.source[0]] if every == 1 else line[:0])
        return True

    def _blocks(self, line: Ids, every: int) -> None:
        """Indices between which a strided range alternates go together."""
        for offset in range(1, every):
            self.space.union(line[::every], line[offset::every])


def short_name(target: Any) -> str:
    """``bmm`` for ``aten.bmm.default``."""
    return (
        target._schema.name.split("::")[1]
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", str(target))
    )


def _argument(node: fx.Node, name: str) -> fx.Node:
    """The node that names the matrices: ``offs`` of a grouped product, or the tensor that indexes axis 0."""
    arg = dict(zip(("self", "mat2", "offs"), node.args, strict=False)) | dict(node.kwargs)
    if name == "offs":
        found = arg["offs"]
    else:
        found = node.args[2] if short_name(node.target) == "index_select" else node.args[1][0]  # type: ignore[index]
    assert isinstance(found, fx.Node)
    return found


def _origin(node: fx.Node) -> fx.Node:
    """The numbers of the matrices, behind the ends of their runs where they are sorted."""
    node = _plain(node)
    if short_name(node.target) == "cumsum":
        counts = _plain(node.args[0])
        if short_name(counts.target) in _COUNTS and _sorted(ids := _plain(counts.args[0])):
            return ids
    return node


def _plain(node: Any) -> fx.Node:
    """Seen through casts and views, which keep numbers and their order."""
    while node.op == "call_function" and short_name(node.target) in _CASTS | _VIEWS | _MARKS:
        if (
            node.meta["val"].dtype == torch.bool
        ):  # a mask picks other matrices than the numbers it was made of
            break
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _sorted(node: fx.Node) -> bool:
    """Whether numbers ascend: the first output of a sort."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return short_name(source.target) == "sort" and not (len(source.args) > 2 and source.args[2])
