"""Mixable: whether the units of a head may be replaced by mixtures of them. Nothing is changed.

Where only linear operators stand between the weights that make the units and those that sum over them, and
each treats all units alike, ``W_out -> T W_out`` and ``W_in -> W_in T⁻¹`` cancel for any invertible ``T``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecospa_fx.basis import Field
from ecospa_fx.labels import Ids, LabelArray, Nature, Value
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import Call, arrays_of

_MOVES = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "transpose",
    "permute", "t", "clone", "contiguous", "alias", "detach", "split", "split_with_sizes", "chunk", "slice",
    "select", "unbind", "repeat_interleave", "_to_copy", "to", "sym_size"
}  # fmt: skip
"""Operators that move entries, and change none of them."""

_PRODUCTS = {"linear", "addmm", "mm", "bmm", "matmul"}


def mixable(analysis: Analysis, fields: Sequence[Field]) -> dict[int, str]:
    """The fields whose units may not be mixed, with the reason.

    Args:
        analysis: labels of every node of one capture.
        fields: units in blocks of parameter axes.

    Returns:
        Number of the field → why not.
    """
    known = _Places(analysis, fields)
    refused = dict(known.refused)
    for node, value in analysis.values.items():
        for number in known.scattered(value):
            refused.setdefault(number, f"its units do not lie side by side in {node.name}")
    for call in analysis.calls.values():
        for number, reason in _odd(known, call).items():
            refused.setdefault(number, reason)
    return refused


class _Places:
    """Field and place in it of every component."""

    def __init__(self, analysis: Analysis, fields: Sequence[Field]) -> None:
        self.analysis = analysis
        self.owner = np.full(analysis.partition.num_components, -1)
        self.place = np.zeros_like(self.owner)
        self.widths = np.array([f.width for f in fields] or [0])
        self.refused: dict[int, str] = {}
        for number, one in enumerate(fields):
            self._enter(number, one)

    def _enter(self, number: int, one: Field) -> None:
        """Note the components of one field; every block has to name the same ones."""
        found = [self._components(block.parameter, block.axis) for block in one.blocks]
        if any(ids is None for ids in found):
            self.refused[number] = "not every capture reads all of its weights"
            return
        lines = [ids[b.start : b.start + one.width] for ids, b in zip(found, one.blocks, strict=True)]  # type: ignore[index]
        if any(not np.array_equal(line, lines[0]) for line in lines) or (self.owner[lines[0]] >= 0).any():
            self.refused[number] = "its weights order the units in different ways"
            return
        self.owner[lines[0]], self.place[lines[0]] = number, np.arange(one.width)

    def _components(self, parameter: str, axis: int) -> Ids | None:
        ids = self.analysis.labels.get(parameter, (None,) * (axis + 1))[axis]
        return None if ids is None or ids.ndim != 1 else self.analysis.partition.component[ids]

    def of(self, value: Any) -> set[int]:
        """Fields whose units a value holds."""
        return {int(n) for array in arrays_of(value) for n in np.unique(self._owners(array)) if n >= 0}

    def scattered(self, value: Any) -> set[int]:
        """Fields whose units do not lie side by side, all of them in their order, along one axis."""
        return set().union(*(self._scattered(array) for array in arrays_of(value)))

    def _owners(self, array: LabelArray) -> Ids:
        return np.asarray(self.owner[self.analysis.partition.component[array.ids]])

    def _places(self, array: LabelArray) -> Ids:
        return np.asarray(self.place[self.analysis.partition.component[array.ids]])

    def _scattered(self, array: LabelArray) -> set[int]:
        owners = self._owners(array)
        held = {int(n) for n in np.unique(owners) if n >= 0}
        if not held:
            return held
        last = max(array.axes)
        owners, places = (np.moveaxis(x, last, -1) for x in (owners, self._places(array)))
        follows = (np.diff(owners) == 0) & (np.diff(places) == 1)
        edge = np.zeros((*follows.shape[:-1], 1), bool)
        begun = (places == 0) | np.concatenate([edge, follows], -1)
        ended = (places == self.widths[owners] - 1) | np.concatenate([follows, edge], -1)
        return set() if (begun & ended | (owners < 0)).all() else held


def _odd(known: _Places, call: Call) -> Mapping[int, str]:
    """The fields that one operator does not treat as a linear one does, unit by unit alike."""
    carriers = {name: found for name, arg in call.args.items() if (found := known.of(arg))}
    held: set[int] = set().union(*carriers.values())
    out = known.of(tuple(call.outputs))
    name = call.target.split(".")[1] if "." in call.target else call.target
    if name in _MOVES:
        return {}
    if name == "cat":  # what has no units of a field would stand in the old basis between those that have
        parts = [known.of(v) for v in call.args["tensors"] if 0 not in v.shape]
        held = {n for n in held if not all(n in part for part in parts)}
        return dict.fromkeys(held, "its units are joined with other values")
    fine = {
        n for n in held if _linear(name, call, {a for a, found in carriers.items() if n in found}, n in out)
    }
    return dict.fromkeys((held | out) - fine, f"its units pass {call.target}")


def _linear(name: str, call: Call, carriers: set[str], kept: bool) -> bool:
    """Whether an operator is linear in the units that ``carriers`` hold, and treats them alike."""
    natures = {a: call.args[a].nature for a in carriers if isinstance(call.args[a], Value)}
    if len(natures) != len(carriers):
        return False
    tensors = {a for a, v in call.args.items() if isinstance(v, Value)}
    if name == "add":
        return carriers == tensors and kept and call.get("alpha", 1) == 1
    if name == "scaled_dot_product_attention":
        return carriers == {"value"} and kept
    if name not in _PRODUCTS:
        return False
    weights = {a for a, nature in natures.items() if nature is Nature.WEIGHT}
    rest = carriers - weights
    if not kept:  # summed over
        return len(weights) == 1 == len(rest)
    return not rest or (not weights and len(rest) == 1)
