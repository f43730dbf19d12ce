"""Recast: the caches of a call as wide as in the dense model, and as narrow as in the smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import InputError
from ecospa_fx.labels import Value
from ecospa_fx.layout import Layout
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.level import level
from ecospa_fx.passes.rewrite import layouts
from ecospa_fx.program import Analysis
from ecospa_fx.removal import Removal
from ecospa_fx.signature import state_leaves

Change = Callable[[torch.Tensor, Layout], torch.Tensor]


@dataclass(frozen=True, eq=False)
class States:
    """Where the entries of caches lie in one program after a removal.

    Attributes:
        inputs: layout of every tensor of the caches that come in, in the order of the call.
        outputs: layout of every tensor of the caches that are returned.
    """

    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout | None, ...]

    def small(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """A call whose caches are those of the smaller model.

        Raises:
            InputError: a cache is neither of the dense model nor of the present one.
        """
        return _recast(named, self.inputs, _narrowed)

    def check(self, named: Mapping[str, Any]) -> None:
        """Refuse caches that are not as narrow as the model.

        Raises:
            InputError: a cache was made before a removal.
        """
        placed = zip(_tensors(*pytree.tree_flatten(dict(named))), self.inputs, strict=False)
        for (_, tensor), at in placed:
            if at is not None and _sizes(tensor.shape, at) != _sizes(at.shape, at):
                raise _outdated(tensor, at)

    def dense(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """A call whose caches are those of the masked model: zeros where entries are gone."""
        return _recast(self.small(named), self.inputs, _widened)

    def kept(self, output: Any) -> list[torch.Tensor]:
        """Tensors of the caches in an output, of which only what the smaller model holds, too."""
        found = [t for _, t in _tensors(*pytree.tree_flatten(output))]
        if len(found) != len(self.outputs):
            return []
        return [t if at is None else _narrowed(t, at) for t, at in zip(found, self.outputs, strict=True)]


def states(graph: CouplingGraph, analysis: Analysis, removal: Removal) -> States:
    """Layouts of the caches of one program.

    Args:
        graph: its couples.
        analysis: its labels.
        removal: what is gone.

    Raises:
        PlanError: the program ties entries together of which the removal takes only some.
    """
    program, nodes = analysis.program, analysis.program.graph.nodes
    inputs = [n for n in nodes if n.op == "placeholder"]
    flat = pytree.tree_leaves(next(n for n in nodes if n.op == "output").args[0])
    sides = [_held(inputs, program.state_in), _held(flat, program.state_out)]
    if not any(sides):
        return States((), ())
    dead = dead_labels(analysis, removal)
    values = [analysis.values.get(n) for n in (*sides[0], *sides[1])]
    found = iter(
        layouts(analysis, dead, level(graph, analysis, dead), [v for v in values if isinstance(v, Value)])
    )
    placed = [next(found) if isinstance(v, Value) else None for v in values]
    return States(tuple(placed[: len(sides[0])]), tuple(placed[len(sides[0]) :]))


def _held(nodes: Sequence[Any], flags: Sequence[bool]) -> list[fx.Node]:
    """Nodes of caches that are tensors."""
    shown = zip(nodes, flags, strict=False)
    return [n for n, flag in shown if flag and isinstance(n, fx.Node) and _counts(n.meta.get("val"))]


def _counts(value: Any) -> bool:
    """Whether it may be keys, values or a state; a count of tokens is a tensor as well."""
    return isinstance(value, torch.Tensor) and value.dim() > 1


def _tensors(leaves: Sequence[Any], tree: pytree.TreeSpec) -> Iterator[tuple[int, torch.Tensor]]:
    flags = state_leaves(tree)
    return ((i, x) for i, x in enumerate(leaves) if flags[i] and _counts(x))


def _recast(named: Mapping[str, Any], placed: Sequence[Layout | None], change: Change) -> dict[str, Any]:
    leaves, tree = pytree.tree_flatten(dict(named))
    found = list(_tensors(leaves, tree))
    if len(found) == len(placed):
        for (i, tensor), at in zip(found, placed, strict=True):
            tensor = tensor.detach()  # how it came about is no part of this call
            leaves[i] = tensor if at is None else change(tensor, at)
    result: dict[str, Any] = pytree.tree_unflatten(leaves, tree)
    return result


def _narrowed(tensor: torch.Tensor, at: Layout) -> torch.Tensor:
    """Entries that are left; a tensor that is narrow already stays."""
    if _sizes(tensor.shape, at) == _sizes(at.shape, at):
        return tensor
    if _sizes(tensor.shape, at) != _sizes(at.dense, at):
        raise _outdated(tensor, at)
    for axis, index in at.index.items():
        tensor = tensor.take_along_dim(_spread(index, tensor, axis), axis)
    return tensor


def _sizes(shape: Sequence[int], at: Layout) -> list[int]:
    """Sizes of the axes that have become smaller."""
    return [shape[a] for a in at.index if at.changed(a)]


def _outdated(tensor: torch.Tensor, at: Layout) -> InputError:
    wanted = [at.shape[a] if at.changed(a) else n for a, n in enumerate(tensor.shape)]
    return InputError(
        f"the call brings a cache of shape {list(tensor.shape)}, and that of the model as it is now has "
        f"{wanted}: it was made before a removal. Start with a new cache, and all tokens so far"
    )


def _widened(tensor: torch.Tensor, at: Layout) -> torch.Tensor:
    """The same entries among zeros."""
    for axis, index in reversed(list(at.index.items())):
        shape = [at.dense[a] if a == axis else n for a, n in enumerate(tensor.shape)]
        tensor = tensor.new_zeros(shape).scatter(axis, _spread(index, tensor, axis), tensor)
    return tensor


def _spread(index: np.ndarray, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Indices for every row of ``tensor``."""
    shape = [index.shape[a] if a == axis else n for a, n in enumerate(tensor.shape)]
    return torch.from_numpy(np.ascontiguousarray(index)).to(tensor.device).expand(shape)
