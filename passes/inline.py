"""Inline: the nodes of a call in place of every operator that stands for one like it.

The two calls that were followed have to be the same graph over their own tensors and arguments; what is
written out for a repeated call is the second of them with other tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ecospa_fx.alike import expression, kind
from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.once import Repeats
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.repeats import ENTER, LEAVE, REPEAT, TracedCall, UnevenError

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one call was followed by.

    Attributes:
        call: the call.
        nodes: in order.
        inputs: markers at its beginning → the place of the argument.
        outputs: what it gives to the outside, in order.
        own: names of the block's tensors → their place in the block.
    """

    call: TracedCall
    nodes: tuple[fx.Node, ...]
    inputs: Mapping[fx.Node, int]
    outputs: tuple[fx.Node, ...]
    own: Mapping[str, int]


def inline(graph: fx.Graph, repeats: Repeats, constants: Mapping[str, torch.Tensor]) -> None:
    """Write out every repeated call, in place; no marker of a call is left.

    Args:
        graph: a normalised graph whose attributes have the first of their names.
        repeats: the calls that were followed.
        constants: tensors of the graph by name.

    Raises:
        UnevenError: a call does more than its arguments and tensors say, or two that should be equal differ.
    """
    standing = [n for n in graph.nodes if n.target is REPEAT]
    pieces: dict[int, _Piece] = {}
    for number in dict.fromkeys(int(n.args[2]) for n in standing):
        pieces[number] = _checked(graph, repeats, number, constants)
    for node in standing:
        _write(graph, node, pieces[int(node.args[2])])
    for node in reversed(graph.nodes):
        if node.target in (ENTER, LEAVE):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    if standing:
        sweep(graph)


def _checked(graph: fx.Graph, repeats: Repeats, number: int, constants: Mapping[str, torch.Tensor]) -> _Piece:
    """The piece of a call, if it and the one before it are equal, and nothing but them has a part in it."""
    call = repeats.calls[number]
    assert call.equal is not None
    before = repeats.calls[call.equal]
    one, other = (_piece(graph, c, repeats.names[c.name]) for c in (before, call))
    if _form(one, constants) != _form(other, constants):
        raise UnevenError(f"{one.call.name} and {other.call.name} compute in different ways")
    return other


def _piece(graph: fx.Graph, call: TracedCall, names: tuple[str, ...]) -> _Piece:
    nodes = list(graph.nodes)
    markers = {n for n in nodes if n.target in (ENTER, LEAVE) and n.args[1] == call.number}
    places = [i for i, n in enumerate(nodes) if n in markers]
    between = nodes[min(places) : max(places) + 1] if places else []
    inputs = {n: int(n.args[2]) for n in between if n in markers and n.target is ENTER}
    leaving = {int(n.args[2]): n.args[0] for n in between if n in markers and n.target is LEAVE}
    inner = tuple(n for n in between if n not in markers and n.op != "get_attr")
    own = {name: i for i, name in reversed(list(enumerate(names)))}
    outputs = tuple(leaving.get(i) for i in range(len(call.requires_grad)))
    piece = _Piece(call, inner, inputs, outputs, own)  # type: ignore[arg-type]
    _check_alone(piece, markers)
    return piece


def _check_alone(piece: _Piece, markers: Collection[fx.Node]) -> None:
    """Values come in as arguments and go out as results, nothing is written, no size hangs on data."""
    inside, name = set(piece.nodes), piece.call.name
    if not inside.issuperset(piece.outputs):
        raise UnevenError(f"{name} returns what it has not computed")
    for node in piece.nodes:
        foreign = writes(node) and _written(node, inside) not in inside
        if node.op != "call_function" or node.target in (ENTER, LEAVE, REPEAT) or foreign:
            raise UnevenError(f"{name} writes to what it has not made, or calls another block")
        taken = [a for a in node.all_input_nodes if a not in inside and a not in piece.inputs]
        if not all(a.op == "get_attr" or _is_number(a) for a in taken):
            raise UnevenError(f"{name} reads what is not among its arguments")
        if not (_is_number(node) or all(u in inside or u in markers for u in node.users)):
            raise UnevenError(f"{name} gives more to the outside than it returns")
        if free_unbacked_symbols(node.meta.get("val")):
            raise UnevenError(f"{name} has sizes that depend on data")


def _written(node: fx.Node, inside: Collection[fx.Node]) -> Any:
    """What made the memory that an operator writes to, as far as it lies in the piece."""
    made: Any = node.args[0]
    while isinstance(made, fx.Node) and made in inside:
        schema = getattr(made.target, "_schema", None)
        if schema is not None and not any(r.alias_info for r in schema.returns):
            return made
        made = made.args[0] if made.args else None  # a view, or what may be one
    return None


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), _NUMBERS)


def _form(piece: _Piece, constants: Mapping[str, torch.Tensor]) -> list[Any]:
    """What a piece computes, to compare: without names, and without where numbers were worked out."""
    known: dict[fx.Node, Any] = {n: ("input", i) for n, i in piece.inputs.items()}

    def told(node: fx.Node) -> Any:
        return known[node] if node in known else _leaf(node, piece, constants)

    form: list[Any] = [len(piece.outputs)]
    for node in piece.nodes:
        if not _is_number(node):
            form.append((node.target, _plain(node.args, told), _plain(node.kwargs, told), _kinds(node)))
            known[node] = ("node", len(form))
    return [*form, *(known[n] for n in piece.outputs)]


def _leaf(node: fx.Node, piece: _Piece, constants: Mapping[str, torch.Tensor]) -> Any:
    """What a piece takes from outside: a number, one of the block's tensors, a constant."""
    if _is_number(node):
        return ("number", str(expression(node.meta["val"])))
    name = str(node.target)
    if name in piece.own:
        return ("own", piece.own[name])
    value = constants.get(name)
    if value is None or value.is_meta or isinstance(value, torch._subclasses.FakeTensor):
        return ("attribute", name)
    return ("constant", kind(value), tuple(value.reshape(-1).tolist()))


def _plain(value: Any, told: Any) -> Any:
    """Arguments as tuples; types count, for ``1`` and ``1.0`` and ``True`` are equal."""
    if isinstance(value, fx.Node):
        return told(value)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v, told) for v in value)
    if isinstance(value, dict):
        return tuple((k, _plain(v, told)) for k, v in value.items())
    if isinstance(value, slice):
        return ("slice", *(_plain(v, told) for v in (value.start, value.stop, value.step)))
    return (type(value), str(value))


def _kinds(node: fx.Node) -> Any:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(kind(v) if isinstance(v, torch.Tensor) else type(v) for v in values)


def _write(graph: fx.Graph, standing: fx.Node, piece: _Piece) -> None:
    """The nodes of a piece in front of the operator that stands for them, which goes."""
    values, tensors = standing.args[:2]
    env: dict[fx.Node, Any] = {n: values[i] for n, i in piece.inputs.items()}  # type: ignore[index]
    rename = _Renamed(piece, standing)

    def mapped(node: fx.Node) -> Any:
        if node not in env:
            place = piece.own.get(str(node.target)) if node.op == "get_attr" else None
            env[node] = node if place is None else tensors[place]  # type: ignore[index]
        return env[node]

    with graph.inserting_before(standing):
        for node in piece.nodes:
            env[node] = graph.node_copy(node, mapped)
            env[node].meta = {**node.meta, "nn_module_stack": rename(node)}
    for user in list(standing.users):
        user.replace_all_uses_with(env[piece.outputs[user.args[1]]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(standing)


class _Renamed:
    """The stack of modules of a node as it is in another block."""

    def __init__(self, piece: _Piece, standing: fx.Node) -> None:
        self.outer = dict(standing.meta["nn_module_stack"])
        self.key, (self.path, _) = list(self.outer.items())[-1]
        stack = next(iter(piece.inputs)).meta["nn_module_stack"]
        self.depth = len(stack)
        self.old_key, (self.old_path, _) = list(stack.items())[-1]
        if "@" in f"{self.path}{self.old_path}":
            raise UnevenError(f"{self.path} is called more than once")

    def __call__(self, node: fx.Node) -> dict[str, Any]:
        inner = list(node.meta["nn_module_stack"].items())[self.depth :]
        return self.outer | {
            key.replace(self.old_key, self.key, 1): (path.replace(self.old_path, self.path, 1), kind)
            for key, (path, kind) in inner
        }
