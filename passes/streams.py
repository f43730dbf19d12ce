"""Streams: which labels belong to a residual stream, told from the flow of values alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ecospa_fx.labels import Ids, Value
from ecospa_fx.program import Analysis

Streams = dict[int, int]  # representative component → bit set of the streams that carry it


def residual_components(analysis: Analysis) -> Ids:
    """Components that leave their stream and are added to it again.

    A stream is a connected run of values that carry a component. In a residual network a value leaves
    its stream (through a layer) and meets it again where both carry the same component. Gates, RoPE
    halves, low-rank adapters and layers that share weights never do: their branches begin anew.

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
            gone |= self.left[source]
            summed = self._summed(node, source)
            for component, streams in self.inside[source].items():
                if component not in carried or component in summed or source.op == "get_attr":
                    gone |= streams
                    continue
                if here.get(component, 0) & self.left[source] or any(
                    streams & self.left[other]
                    for other in inputs
                    if other is not source and component in self.inside[other]
                ):
                    self.found.append(np.unique(carried[component]))
                here[component] = here.get(component, 0) | streams
        for component in carried:
            if component not in here:
                here[component] = 1 << self.count
                self.count += 1
        on_board = 0
        for streams in here.values():
            on_board |= streams
        self.inside[node], self.left[node] = here, gone & ~on_board  # a norm leaves and joins in one breath

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
        values = value if isinstance(value, list | tuple) else [value]
        arrays = [array for v in values if isinstance(v, Value) for array in v.arrays]
        arrays = [a for a in arrays if axis is None or axis in a.axes]
        component = self.analysis.partition.component
        return {int(component[a.ids.flat[0]]): component[a.ids] for a in arrays}
