"""A graph that runs: its tensors come in from the model at every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ecospa_fx.shortcut import Shortcut, observed


class Executable:
    """A graph as a function of the model's tensors and the inputs.

    Parameters and buffers are looked up in the model at each call, so that whatever replaces them
    there (``.to()``, ``load_state_dict``, an optimizer) is what the graph computes with.

    Args:
        graph: flat tensors in and out, with ``get_attr`` nodes on the model's names.
        constants: tensors of the graph itself, by name.
        model: the module that owns the rest.
        shortcuts: graphs for some of the inputs.
    """

    def __init__(
        self,
        graph: fx.Graph,
        constants: Mapping[str, torch.Tensor],
        model: nn.Module,
        shortcuts: Sequence[Shortcut] = (),
    ) -> None:
        lifted, self.names = lift_attributes(graph)
        self.module = fx.GraphModule(nn.Module(), lifted)
        self.module.train(model.training)
        self._constants = dict(constants)
        self._places = [self._place(model, n) for n in self.names]
        self._device: torch.device | None = None
        self._shortcuts = [(s, Executable(s.graph, constants, model)) for s in shortcuts]

    def _place(self, model: nn.Module, name: str) -> tuple[Mapping[str, Any], str]:
        """The dict that holds a tensor, and its key there."""
        if name in self._constants:
            return self._constants, name
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        return (owner._parameters if leaf in owner._parameters else owner._buffers), leaf

    def __call__(self, inputs: list[Any]) -> Any:
        """Run on flat inputs; returns flat outputs."""
        return self.module(*self.arguments(inputs))

    def best(self, inputs: list[Any]) -> Executable:
        """What computes the same for these inputs with the least work."""
        if self._shortcuts and not observed():
            return next((made for s, made in self._shortcuts if s.fits(inputs)), self)
        return self

    def arguments(self, inputs: list[Any]) -> list[Any]:
        """What the lifted graph takes: the model's tensors, then the flat inputs."""
        self._follow(inputs)
        return [*(place[key] for place, key in self._places), *inputs]

    def _follow(self, inputs: list[Any]) -> None:
        """Constants live where the inputs do."""
        device = next((x.device for x in inputs if isinstance(x, torch.Tensor)), self._device)
        if device is not None and device != self._device:
            for name, value in self._constants.items():
                self._constants[name] = value.to(device)
            self._device = device


def lift_attributes(graph: fx.Graph) -> tuple[fx.Graph, tuple[str, ...]]:
    """A copy of ``graph`` whose attributes are leading inputs, and their names in order."""
    lifted = fx.Graph()
    names = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr")
    tensors = {name: lifted.placeholder(f"attribute_{i}") for i, name in enumerate(names)}
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            env[node] = tensors[str(node.target)]
        elif node.target is torch.ops.aten.sym_size.int:  # vmap has no rule for it
            env[node] = lifted.call_method("size", tuple(env.get(a, a) for a in node.args))
        else:
            env[node] = lifted.node_copy(node, env.__getitem__)
    return lifted, tuple(names)
