"""A walk through one graph on one batch, node by node, which stops where it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import fx

from ecospa_fx.executable import Executable


class Walk:
    """Values of a graph up to some node; those that nothing needs any more are dropped.

    What is computed from the model's tensors alone is computed where it is used, so that a tensor may change
    on the way.

    Args:
        executable: the graph, without calls of blocks.
        inputs: flat inputs.
        change: from the name of a tensor and its value in the model to what the walk sees.
    """

    def __init__(
        self, executable: Executable, inputs: list[Any], change: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> None:
        self._change = change
        self._nodes = list(executable.module.graph.nodes)
        self._at = 0
        places = [n for n in self._nodes if n.op == "placeholder"]
        self._names = dict(zip(places, executable.names, strict=False))
        self._fixed = _fixed(self._nodes, self._names)
        self._last = {a: n for n in self._nodes for a in n.all_input_nodes}
        self._env: dict[fx.Node, Any] = dict(zip(places, executable.arguments(inputs), strict=True))

    def until(self, node: fx.Node) -> None:
        """Run everything before ``node``; what has been passed is not run again."""
        while self._nodes[self._at] is not node:
            self._step(self._nodes[self._at])
            self._at += 1

    def _step(self, node: fx.Node) -> None:
        if node.op == "placeholder" or node in self._fixed:
            return
        self._env[node] = self._run(node)
        for read in {*node.all_input_nodes, node}:
            if self._last.get(read, read) is node and read not in self._names:
                self._env.pop(read, None)

    def knows(self, node: fx.Node) -> bool:
        """Whether a node has a value now."""
        return node in self._fixed or node in self._env

    def value(self, node: fx.Node) -> Any:
        """What a node holds now."""
        return self._run(node) if node in self._fixed else self._env[node]

    def _run(self, node: fx.Node) -> Any:
        if node in self._names:
            return self._change(self._names[node], self._env[node])
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target), node.op
        return node.target(*args, **kwargs)


def _fixed(nodes: Iterable[fx.Node], tensors: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on the model's tensors and on nothing else."""
    fixed = set(tensors)
    for node in nodes:
        read = node.all_input_nodes
        if read and fixed.issuperset(read) and node.op != "output":
            fixed.add(node)
    return fixed
