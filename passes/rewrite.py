"""Rewrite: from a dense program and dead labels to the smaller graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx import ops
from ecospa_fx.arrays import along
from ecospa_fx.collecting import uncollected
from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import Ids, Nature, Value
from ecospa_fx.layout import Layout, layout_of
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.program import Analysis
from ecospa_fx.routers import MARKERS
from ecospa_fx.rules import TABLE
from ecospa_fx.rules.call import Call, Join, Pick, lift_ids
from ecospa_fx.rules.routers import MARKER_RULES
from ecospa_fx.rules.site import Free, Site, positions


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A smaller graph.

    Attributes:
        graph: flat tensors in and out, over the same parameter names; ``node.meta["dense"]`` is the node
            of the dense program that it stands for.
        constants: index tensors that the graph reads, by name.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]


@uncollected()
def rewrite(analysis: Analysis, dead: Ids, levelled: Ids | None = None) -> Rewritten:
    """Write the graph anew for the survivors.

    The dense program stays as it is, so that a later round starts from it again, without a new trace.

    Args:
        analysis: the dense program and its labels.
        dead: labels that are gone from the parameters, bool, shape ``[labels]``.
        levelled: those that are gone from the shapes (see :func:`~ecospa_fx.passes.level.level`), where
            they are fewer: a parameter is then spread out with zeros as it is read.

    Raises:
        RewriteError: a node cannot take its smaller shape.
    """
    return _Rewriter(analysis, dead, dead if levelled is None else levelled).run()


def layouts(analysis: Analysis, dead: Ids, levelled: Ids, values: Iterable[Value]) -> list[Layout]:
    """Where the survivors of some values lie in the smaller graph (see :func:`rewrite`).

    Raises:
        RewriteError: the survivors of a value do not form a box.
    """
    rewriter = _Rewriter(analysis, dead, levelled)
    return [rewriter.layout(value) for value in values]


class _Rewriter:
    def __init__(self, analysis: Analysis, gone: Ids, dead: Ids) -> None:
        self.analysis = analysis
        self.gone = gone
        self.dead = dead
        self.standing = analysis.space.stacks.standing(dead)
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._known: dict[tuple[Any, ...], fx.Node] = {}

    def run(self) -> Rewritten:
        for node in self.analysis.program.graph.nodes:
            self.env[node] = new = self._visit(node)
            if isinstance(new, fx.Node) and (node.target not in MARKERS or new is not self.env[node.args[0]]):
                new.meta = {**node.meta, "dense": node}
        sweep(self.graph)
        return Rewritten(self.graph, self.constants)

    def layout(self, value: Value) -> Layout:
        key = (value.shape, *(id(a.ids) for a in value.arrays))
        if key not in self._layouts:
            alive = Value(
                value.shape,
                value.symbolic,
                tuple(a for a in value.arrays if self.dead[a.ids].any() or self._outer(a, value)),
            )
            self._layouts[key] = layout_of(alive, self.standing)
        return self._layouts[key]

    def _outer(self, array: Any, value: Value) -> bool:
        return any(array.axes < other.axes and self.dead[other.ids].any() for other in value.arrays)

    def _visit(self, node: fx.Node) -> Any:
        if node.target is operator.getitem and isinstance(self.env[node.args[0]], tuple):  # type: ignore[index]
            return self.env[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.op == "get_attr" and self.gone is not self.dead:
            return self._spread(self.graph.node_copy(node), str(node.target))
        call = self.analysis.calls.get(node)
        if call is None or not self._touched(call):
            if node.target in MARKERS:
                return self.env[node.args[0]]  # type: ignore[index]
            return self.graph.node_copy(node, self.env.__getitem__)
        try:
            return self._rewritten(node, call)
        except RewriteError as error:
            raise RewriteError(f"{call.target} ({call.source or node.name}): {error}") from error

    def _spread(self, tensor: fx.Node, name: str) -> fx.Node:
        """A parameter with zeros for entries that shapes still count, and that it has lost."""
        for axis, ids in enumerate(self.analysis.labels.get(name, ())):
            if ids is not None and (self.gone[ids] != self.dead[ids]).any():
                places = np.flatnonzero(~self.gone[ids[~self.dead[ids]]])
                width = int((~self.dead[ids]).sum())
                args = (tensor, axis, self._constant(places), width)
                tensor = self.graph.call_function(ops.spread, args)
        return tensor

    def _touched(self, call: Call) -> bool:
        values = [*call.values(), *call.outputs, *(j.joint for j in call.joins)]
        return any(self.dead[a.ids].any() for v in values for a in v.arrays)

    def _rewritten(self, node: fx.Node, call: Call) -> Any:
        args = named_arguments(node, self.env.__getitem__)
        site = Site(call, node.target, args, self.graph, self.layout, self._constant)
        for join in call.joins:
            self._align(site, join)
        found = MARKER_RULES.get(call.target) or TABLE.find(call.target)
        if found is not None and found.rewrite is not None:
            found.rewrite(site)
        elif call.picks:
            self._pick(site, call.picks)
        if site.result is not None:
            return site.result
        return self._emit(node, site.args)

    def _emit(self, node: fx.Node, args: Mapping[str, Any]) -> fx.Node:
        """The same operator; arguments keep their place as positional or keyword ones."""
        order = list(args)
        positional = tuple(args[k] for k in order[: len(node.args)])
        keyword = {k: args[k] for k in order[len(node.args) :]}
        return self.graph.call_function(node.target, positional, keyword)  # type: ignore[arg-type]

    def _align(self, site: Site, join: Join) -> None:
        """Gather constants and shared weights so that they fit the survivors they meet."""
        joint = self.layout(join.joint)
        for name, axes in join.operands:
            value = site.operand(name)
            have = self.layout(value)
            for axis, place in enumerate(axes):
                if place in joint.index or axis in have.index:
                    self._fit(site, join, name, axis, axes, joint)

    def _fit(
        self, site: Site, join: Join, name: str, axis: int, axes: tuple[int, ...], joint: Layout
    ) -> None:
        value, rank = site.operand(name), len(joint.dense)
        place = axes[axis]
        if value.shape[axis] == 1 or joint.dense[place] == 1:
            return
        have = lift_ids(self.layout(value).at(axis), rank, axes)
        want = joint.at(place)
        if _same(have, want):
            return
        if not join.gather or value.nature >= Nature.ACTIVATION:
            raise RewriteError(f"operand {name!r} does not line up with what it meets")
        if value.symbolic[axis]:
            raise RewriteError(f"operand {name!r} would be gathered along a symbolic axis")
        self._gather(site, join, name, axes, place, positions(have, want, place))

    def _gather(self, site: Site, join: Join, name: str, axes: tuple[int, ...], place: int, at: Ids) -> None:
        node, rank = site.node(name), at.ndim
        if at.size == at.shape[place]:
            axis = axes.index(place)
            key: tuple[Any, ...] = ("take", node, axis, at.tobytes())
            flat = along(at, len(axes), axis)
            taken = self._once(key, lambda: site.take(node, axis, flat))
        else:
            free = _free(site, join)
            key = ("take", node, place, rank, at.tobytes(), *free.sizes.items())
            taken = self._once(key, lambda: site.take(self._to_rank(site, node, axes, rank), place, at, free))
        site.set(name, taken)

    def _to_rank(self, site: Site, node: fx.Node, axes: tuple[int, ...], rank: int) -> fx.Node:
        for place in range(rank):
            if place not in axes:
                node = site.emit(torch.unsqueeze, node, place)
        return node

    def _once(self, key: tuple[Any, ...], make: Any) -> fx.Node:
        """Gather a constant once for all that need the same entries of it."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _pick(self, site: Site, picks: Iterable[Pick]) -> None:
        results = [self._picked(site, p) for p in picks]
        if any(r is not None for r in results):
            filled = [
                r if r is not None else self._plain_pick(site, p) for r, p in zip(results, picks, strict=True)
            ]
            site.result = tuple(filled) if len(site.call.outputs) > 1 else filled[0]

    def _picked(self, site: Site, pick: Pick) -> fx.Node | None:
        """The selection from the survivors, or None where its axis did not change."""
        have = self.layout(site.operand(pick.operand))
        if pick.axis not in have.index:
            return None
        want = self._wanted(site, pick)
        at = positions(have.at(pick.axis), want, pick.axis)
        node, value = site.node(pick.operand), site.operand(pick.operand)
        free = Free(value, {axis: (node, axis) for axis, yes in enumerate(value.symbolic) if yes})
        if not pick.drop:
            return site.take(node, pick.axis, at, free)
        if at.size != 1:  # row by row, it lies in another place
            taken = site.take(node, pick.axis, at, free)
            return site.emit(torch.ops.aten.select.int, taken, pick.axis, 0)
        return site.emit(torch.ops.aten.select.int, node, pick.axis, int(at.flat[0]))

    def _wanted(self, site: Site, pick: Pick) -> Ids:
        value = site.operand(pick.operand)
        if pick.drop:
            return pick.source.reshape([1] * value.rank)
        wanted: Ids = pick.source[self.layout(site.call.outputs[pick.output]).at(pick.axis)]
        return wanted

    def _plain_pick(self, site: Site, pick: Pick) -> fx.Node:
        if pick.drop:
            return site.emit(
                torch.ops.aten.select.int, site.node(pick.operand), pick.axis, int(pick.source[0])
            )
        at = along(pick.source, site.operand(pick.operand).rank, pick.axis)
        return site.take(site.node(pick.operand), pick.axis, at)

    def _constant(self, array: Ids) -> fx.Node:
        key = ("constant", array.shape, array.tobytes())
        if key not in self._known:
            name = f"_index_{len(self.constants)}"
            self.constants[name] = torch.from_numpy(np.ascontiguousarray(array))
            self._known[key] = self.graph.get_attr(name)
        return self._known[key]


def _free(site: Site, join: Join) -> Free:
    sizes = {
        place: (site.node(name), axis)
        for name, axes in join.operands
        for axis, place in enumerate(axes)
        if site.operand(name).symbolic[axis]
    }
    return Free(join.joint, sizes)


def _same(a: Ids, b: Ids) -> bool:
    fits = all(n == m or 1 in (n, m) for n, m in zip(a.shape, b.shape, strict=True))
    return fits and bool((a == b).all())
