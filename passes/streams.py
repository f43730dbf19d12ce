"""Streams: which labels belong to a residual stream, told from the flow of values alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ecospa_fx.labels import Ids, Nature, Tag, Value
from ecospa_fx.passes.routing import short_name
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import arrays_of

# What meets there is multiplied: a gate or a step size made from what it scales is no residual.
_PRODUCTS = frozenset({"mul", "mul_", "div", "div_", "bmm", "matmul", "einsum"})
_RANGES = frozenset({"getitem", "split", "split_with_sizes", "chunk", "slice"})

Streams = dict[int, int]  # representative component → bit set of the streams that carry it


def residual_components(analysis: Analysis) -> Ids:
    """Components that leave their stream and are added to it again.

    A stream is a connected run of values that carry a component. In a residual network a value leaves
    its stream (through a layer) and is added to it where both carry the same component. Gates, RoPE
    halves, low-rank adapters and layers that share weights never do: their branches begin anew, or are
    multiplied. Nor does a recurrence whose step sizes come from its own inputs: whatever it adds shares them.

    Returns:
        The components, as an integer array.
    """
    return _Walk(analysis).run()


class _Walk:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.inside: dict[fx.Node, Streams] = {}
        self.left: dict[fx.Node, int] = {}
        self.count = 0
        self.found: list[Ids] = [np.zeros(0, np.int64)]

    def run(self) -> Ids:
        for node in self.analysis.program.graph.nodes:
            self._visit(node)
        return np.unique(np.concatenate(self.found))

    def _visit(self, node: fx.Node) -> None:
        carried = self._carried(self.analysis.values.get(node))
        inputs = [n for n in node.all_input_nodes if n in self.inside]
        here: Streams = {}
        gone = 0
        for source in inputs:
            stay = self._stay(node, source) & carried.keys()
            gone |= self.left[source]
            for component, streams in self.inside[source].items():
                if component not in stay:
                    # A range leaves out what lies beside it.
                    gone |= 0 if short_name(node.target) in _RANGES else streams
                    continue
                if self._joins(node, component, source, inputs):
                    self.found.append(np.unique(carried[component]))
                here[component] = here.get(component, 0) | streams
        for component in carried:
            if component not in here:
                here[component] = self._born(node)
        on_board = 0
        for streams in here.values():
            on_board |= streams
        self.inside[node], self.left[node] = here, gone & ~on_board  # a norm leaves and joins in one breath

    def _stay(self, node: fx.Node, source: fx.Node) -> set[int]:
        """Components of ``source`` that ``node`` may pass on."""
        return self.inside[source].keys() - self._summed(node, source) if self._computed(source) else set()

    def _joins(self, node: fx.Node, component: int, source: fx.Node, inputs: list[fx.Node]) -> bool:
        """Whether ``source`` and another input are a branch and its trunk, which ``node`` adds up."""
        if short_name(node.target) in _PRODUCTS:
            return False
        others = (n for n in inputs if n is not source and component in self.inside[n])
        found = any(
            self._returns(component, source, n) or self._returns(component, n, source) for n in others
        )
        return found and not self._mixed_by_head(node, component)

    def _born(self, node: fx.Node) -> int:
        """A stream of its own for what is computed from inputs; parameters alone make none."""
        if not self._computed(node):
            return 0
        self.count += 1
        return 1 << (self.count - 1)

    def _computed(self, node: fx.Node) -> bool:
        value = self.analysis.values.get(node)
        first = value[0] if isinstance(value, tuple) else value
        return isinstance(first, Value) and first.nature >= Nature.ACTIVATION

    def _returns(self, component: int, branch: fx.Node, trunk: fx.Node) -> bool:
        """Whether ``branch`` left a stream of ``trunk``, and has one of its own that the trunk has not."""
        own, other = self.inside[branch][component], self.inside[trunk][component]
        return bool(self.left[branch] & other and own & ~other)

    def _mixed_by_head(self, node: fx.Node, component: int) -> bool:
        """Whether these are values of attention, head by head, which join those of later layers."""
        partition = self.analysis.partition
        arrays = list(arrays_of(self.analysis.values.get(node)))
        own = next(a for a in arrays if component in partition.component[a.ids])
        finer = (partition.component[a.ids] for a in arrays if own.axes <= a.axes and len(a.axes) > 1)
        return any((partition.tags[components] & Tag.VALUE).any() for components in finer)

    def _summed(self, node: fx.Node, source: fx.Node) -> set[int]:
        """Components of ``source`` that a sum of products ends; a square weight brings the same anew."""
        call = self.analysis.calls.get(node)
        value = self.analysis.values.get(source)
        ended: set[int] = set()
        for join in call.joins if call is not None else ():
            for name, axes in join.operands:
                if not join.gather and call is not None and call.args.get(name) is value:
                    gone = {i for i, axis in enumerate(axes) if axis >= call.out.rank}
                    ended |= {c for i in gone for c in self._carried(value, i)}
        return ended

    def _carried(self, value: Any, axis: int | None = None) -> dict[int, Ids]:
        """One representative component of each label array (over ``axis``), with all components of it."""
        arrays = [a for a in arrays_of(value) if axis is None or axis in a.axes]
        component = self.analysis.partition.component
        return {int(component[a.ids.flat[0]]): component[a.ids] for a in arrays}
