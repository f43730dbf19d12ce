"""A graph that runs: its tensors come in from the model at every call; its blocks are called as modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ecospa_fx.blocks import Stage, block_place, through, unwrapped
from ecospa_fx.collecting import uncollected
from ecospa_fx.errors import CaptureError
from ecospa_fx.fsdp import still_sharded
from ecospa_fx.regions import Region, is_size, regions, size_sources
from ecospa_fx.shortcut import Shortcut, observed

Place = tuple[Mapping[str, Any], str]
"""The dict that holds a tensor, and its key there."""


class Executable:
    """A graph as a function of the model's tensors and the inputs.

    Parameters and buffers are looked up in the model at each call, so that whatever replaces them
    there (``.to()``, ``load_state_dict``, an optimizer) is what the graph computes with.

    Args:
        graph: flat tensors in and out, with ``get_attr`` nodes on the model's names.
        constants: tensors of the graph itself, by name.
        model: the module that owns the rest.
        blocks: names of the modules that are called for their part of the graph.
        shortcuts: graphs for some of the inputs.
    """

    @uncollected()
    def __init__(
        self,
        graph: fx.Graph,
        constants: Mapping[str, torch.Tensor],
        model: nn.Module,
        blocks: Collection[str] = (),
        shortcuts: Sequence[Shortcut] = (),
    ) -> None:
        parts = regions(graph, blocks)
        lifted, self.names, calls = lift(parts.order if blocks else list(graph.nodes))
        self.module = fx.GraphModule(nn.Module(), lifted)
        self.module.train(model.training)
        self.refused = parts.refused
        self._constants = dict(constants)
        self._places = [self._place(model, n) for n in self.names]
        self._device: torch.device | None = None
        self._shortcuts = [(s, Executable(s.graph, constants, model, blocks)) for s in shortcuts]
        alike: dict[Any, fx.GraphModule] = {}
        self.stages = [self._stage(call, model, alike) for call in calls]

    def _place(self, model: nn.Module, name: str) -> Place:
        if name in self._constants:
            return self._constants, name
        path, _, leaf = name.rpartition(".")
        owner = unwrapped(model, path)
        return (owner._parameters if leaf in owner._parameters else owner._buffers), leaf

    def _stage(self, call: Call, model: nn.Module, alike: dict[Any, fx.GraphModule]) -> Stage:
        """Blocks that compute the same with other weights share one graph: it is compiled once."""
        key = call.key
        if key not in alike:
            alike[key] = fx.GraphModule(nn.Module(), call.graph)
        places = tuple(self._place(model, n) for n in call.names)
        return Stage(*block_place(model, call.block), alike[key], places)

    def __call__(self, inputs: list[Any]) -> Any:
        """Run on flat inputs; returns flat outputs."""
        return self.module(*self.arguments(inputs))

    def best(self, inputs: list[Any]) -> Executable:
        """What computes the same for these inputs with the least work."""
        if self._shortcuts and not observed():
            return next((made for s, made in self._shortcuts if s.fits(inputs)), self)
        return self

    @property
    def has_shortcuts(self) -> bool:
        """Whether some inputs take less work than others."""
        return bool(self._shortcuts)

    def nodes(self) -> Iterator[fx.Node]:
        """Every node that runs, those of each block's call included."""
        yield from self.module.graph.nodes
        for stage in self.stages:
            yield from stage.module.graph.nodes

    def arguments(self, inputs: list[Any]) -> list[Any]:
        """What the lifted graph takes: the model's tensors, the calls of blocks, then the flat inputs."""
        self._follow(inputs)
        return [*(place[key] for place, key in self._places), *self.stages, *inputs]

    def run(self, arguments: list[Any]) -> Any:
        """Flat outputs, with words for what ``fully_shard`` has left in parts.

        Raises:
            CaptureError: parameters are sharded, and no call of a module gathers them.
        """
        try:
            return self.module(*arguments)
        except RuntimeError as error:
            if problem := still_sharded(dict(zip(self.names, arguments, strict=False))):
                raise CaptureError(problem) from error
            raise

    def _follow(self, inputs: list[Any]) -> None:
        """Constants live where the inputs do."""
        device = next((x.device for x in inputs if isinstance(x, torch.Tensor)), self._device)
        if device is not None and device != self._device:
            for name, value in self._constants.items():
                self._constants[name] = value.to(device)
            self._device = device


@dataclass(frozen=True, eq=False)
class Call:
    """What one call of a block runs.

    Attributes:
        block: name of the block.
        graph: the tensors in ``names``, then the values that come from outside.
        names: of the model's tensors and of constants.
    """

    block: str
    graph: fx.Graph
    names: tuple[str, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two graphs that do the same."""
        return tuple((n.op, n.target, str(n.args), str(n.kwargs)) for n in self.graph.nodes)


def lift(order: Collection[fx.Node | Region]) -> tuple[fx.Graph, tuple[str, ...], list[Call]]:
    """A copy of a graph whose attributes and calls of blocks are leading inputs.

    Args:
        order: what runs, in this order: nodes, and regions in which a block is called.

    Returns:
        The graph, the names of its attributes, and the calls, both in the order of its inputs.
    """
    inside = {n for part in order if isinstance(part, Region) for n in part.nodes}
    nodes = [part for part in order if isinstance(part, fx.Node)]
    lifted, env, names = _with_attributes([n for n in nodes if not (inside and inside >= n.users.keys())])
    calls = [(part, lifted.placeholder(f"block_{i}")) for i, part in enumerate(order)
             if isinstance(part, Region)]  # fmt: skip
    stages = dict(calls)
    for part in order:
        if isinstance(part, Region):
            _through(lifted, part, stages[part], env)
        elif part.op != "get_attr":
            env[part] = _copied(lifted, part, env)
    return lifted, names, [call_of(part) for part, _ in calls]


def _with_attributes(nodes: Collection[fx.Node]) -> tuple[fx.Graph, dict[fx.Node, Any], tuple[str, ...]]:
    """A new graph with a leading input for each attribute among ``nodes``."""
    graph = fx.Graph()
    attributes = [n for n in nodes if n.op == "get_attr"]
    names = tuple(dict.fromkeys(str(n.target) for n in attributes))
    inputs = {name: graph.placeholder(f"attribute_{i}") for i, name in enumerate(names)}
    return graph, {n: inputs[str(n.target)] for n in attributes}, names


def _through(graph: fx.Graph, region: Region, stage: fx.Node, env: dict[fx.Node, Any]) -> None:
    """The call of a block, and what it returns."""
    sizes = size_sources(region)
    result = graph.call_function(through, (stage, *(env[n] for n in region.inputs if n not in sizes)))
    if len(region.outputs) == 1:
        env[region.outputs[0]] = result
        return
    for i, node in enumerate(region.outputs):
        env[node] = graph.call_function(_item, (result, i))


def _item(values: Any, index: int) -> Any:
    return values[index]


def call_of(region: Region) -> Call:
    """The graph of one call of a block; names of nodes tell nothing of where they come from."""
    read = dict.fromkeys(a for n in region.nodes for a in n.all_input_nodes if a.op == "get_attr")
    graph, env, names = _with_attributes(read)
    sizes = size_sources(region)
    for node in region.inputs:
        if node not in sizes:
            env[node] = graph.placeholder(f"value_{len(env)}")
    for node, (tensor, axis) in sizes.items():
        env[node] = _size(graph, (env[tensor], axis))
    for node in region.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = (
            _size(graph, args) if is_size(node) else graph.create_node(node.op, node.target, args, kwargs)
        )
    results = tuple(env[n] for n in region.outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return Call(region.block, graph, names)


def _copied(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any]) -> fx.Node:
    if is_size(node):
        return _size(graph, fx.map_arg(node.args, env.__getitem__))
    return graph.node_copy(node, env.__getitem__)


def _size(graph: fx.Graph, args: Any) -> fx.Node:
    return graph.call_method("size", args)  # vmap has no rule for the operator
