"""Persist: every write makes a new value, where memory is read under several names.

A value is known by the memory that it lies in and by the views that lead to it. A write makes a new value
of what it writes to, and of the memory, by the way back through the views; what reads another name of this
memory later takes its views anew. Nothing is traced again: sizes stay as free as they were, and the time is
linear in the nodes.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ecospa_fx import ops
from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.unview import MAYBE, PIECES, UnwritableError, made_like, tensor, unview

aten: Any = torch.ops.aten


def persist(graph: fx.Graph) -> None:
    """Put functional operators in place of writes.

    Args:
        graph: a flat graph (see :func:`~ecospa_fx.passes.normalise.normalise`); it is changed.

    Raises:
        UnwritableError: a write cannot be followed. The graph is of no use then.
    """
    memory = _Memory()
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            memory.follow(node)
    for node in reversed(memory.written):
        graph.erase_node(node)


@dataclass(frozen=True)
class _Alias:
    """Where a value lies.

    Attributes:
        root: what made the memory.
        views: the views from the root to the value, as they were captured.
    """

    root: fx.Node
    views: tuple[fx.Node, ...] = ()


class _Memory:
    """All values of a graph while its nodes are followed in order.

    Attributes:
        written: operators that write; what they made has taken their place.
    """

    def __init__(self) -> None:
        self.written: list[fx.Node] = []
        self._alias: dict[fx.Node, _Alias] = {}
        self._version: dict[fx.Node, int] = {}
        self._values: dict[_Alias, tuple[int, fx.Node]] = {}
        self._pieces: dict[fx.Node, tuple[int, _Alias]] = {}

    def follow(self, node: fx.Node) -> None:
        """Take in the next node."""
        source = self._source(node)
        target = node.args[0] if _writes(node) else None
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), self._fresh)
        if target is not None:
            self._write(node, self._alias.get(target))  # type: ignore[arg-type]
        elif source is not None:
            version, base = source
            self._keep(node, _Alias(base.root, (*base.views, node)), version)
        elif node.op != "output" and tensor(node) is not None:
            self._version[node] = 0
            self._keep(node, _Alias(node), 0)

    def _source(self, node: fx.Node) -> tuple[int, _Alias] | None:
        """What a node is a view of, and in which version."""
        first = node.args[0] if node.args else None
        if node.target is operator.getitem and first in self._pieces:
            return self._pieces[first]  # type: ignore[index]
        read = (n for n in node.all_input_nodes if n in self._alias and _shares(node, n))
        alias = next((self._alias[n] for n in read), None)
        if alias is None:
            return None
        found = self._version[alias.root], alias
        if node.target in PIECES:
            self._pieces[node] = found
        return found if tensor(node) is not None else None

    def _keep(self, node: fx.Node, alias: _Alias, version: int) -> None:
        self._alias[node], self._values[alias] = alias, (version, node)

    def _fresh(self, node: fx.Node) -> fx.Node:
        """The value that a name has by now."""
        return self._value(self._alias[node]) if node in self._alias else node

    def _value(self, alias: _Alias) -> fx.Node:
        version, value = self._values[alias]
        if version != self._version[alias.root]:
            value = _again(alias.views[-1], self._value(_Alias(alias.root, alias.views[:-1])))
            self._values[alias] = self._version[alias.root], value
        return value

    def _write(self, node: fx.Node, alias: _Alias | None) -> None:
        if alias is None or alias.root.op != "call_function" or not _may_write(node, alias.root):
            raise UnwritableError(f"{node.target} writes to what the graph has not made")
        outer = [_Alias(alias.root, alias.views[:depth]) for depth in range(len(alias.views))]
        before = [self._value(a) for a in outer]
        new = _functional(node)
        self._version[alias.root] += 1
        self._alias[node], self._values[alias] = alias, (self._version[alias.root], new)
        for view, name, base in zip(*map(reversed, (alias.views, outer, before)), strict=True):
            new = unview(view, base, new)
            self._values[name] = self._version[alias.root], new
        self.written.append(node)


def _writes(node: fx.Node) -> bool:
    """Whether an operator changes its first argument."""
    if not writes(node):
        return False
    target: Any = node.target
    changed = [i for i, a in enumerate(target._schema.arguments) if a.alias_info and a.alias_info.is_write]
    if changed != [0] or torch.Tag.inplace_view in target.tags:
        raise UnwritableError(f"{target} changes more than the values of its first argument")
    return True


def _may_write(node: fx.Node, root: fx.Node) -> bool:
    """Whether new values have the gradients that a write gives to the memory.

    What is written where nothing is recorded keeps the gradients that the memory has.
    """
    return node.meta.get("apart") in (None, root.meta.get("apart"))


def _shares(node: fx.Node, source: fx.Node) -> bool:
    """Whether an operator returns another view of the memory of one that it reads."""
    target = node.target
    known = isinstance(target, torch._ops.OpOverload) and target not in MAYBE
    if known and any(r.alias_info for r in target._schema.returns):  # type: ignore[union-attr]
        return source is node.args[0]
    found = [tensor(n) for n in (node, source)]
    return all(t is not None for t in found) and len({_storage(t) for t in found}) == 1


def _storage(value: Any) -> int:
    return int(value.untyped_storage()._cdata)


def _again(view: fx.Node, base: fx.Node) -> fx.Node:
    """The same view of another value."""
    if view.target is not operator.getitem:
        new = view.graph.node_copy(view)
        new.args = (base, *view.args[1:])
        new.target = aten.detach.default if view.target is aten.detach_.default else view.target
        return new
    made, place = view.args
    pieces = view.graph.node_copy(made)  # type: ignore[arg-type]
    pieces.args = (base, *pieces.args[1:])
    return made_like(view, operator.getitem, pieces, place)


def _functional(node: fx.Node) -> fx.Node:
    """What an operator writes, as a value of the type of what it writes to."""
    target: Any = ops.overwrite if node.target is aten.copy_.default else _twin(node.target)
    new = made_like(node, target, *node.args, **node.kwargs)
    mine, kinds = tensor(node), [t.dtype for n in node.all_input_nodes if (t := tensor(n)) is not None]
    promoted = torch.Tag.pointwise in getattr(target, "tags", ()) and mine is not None
    if mine is None or not promoted or functools.reduce(torch.promote_types, kinds) == mine.dtype:
        return new
    return made_like(node, aten.to.dtype, new, mine.dtype)


def _twin(target: Any) -> Any:
    """``aten.add_.Tensor`` → ``aten.add.Tensor``."""
    name = target._schema.name.partition("::")[2]
    packet = getattr(aten, name.removesuffix("_"), None) if not name.endswith("__") else None
    overload = getattr(packet, target._overloadname, None)
    if overload is None or target.namespace != "aten" or overload._schema.is_mutable:
        raise UnwritableError(f"{target} has no functional form")
    return overload
