"""Zeros: memories that begin empty, followed until something has been written.

A loop over places starts with ``S = zeros(...)``, reads ``k @ S``, which is zero, and adds to it. No label
tells how wide a tensor of zeros is, so what meets it would have to stay. A product with zeros is zeros, and a
sum with zeros is its other term. Values are taken to be finite: zero times infinity would be no number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.routing import short_name
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.passes.unfuse import emit
from ecospa_fx.sizes import same_size, static

aten = torch.ops.aten
ZEROS = frozenset({"zeros", "new_zeros", "zeros_like"})
_FILLED = frozenset({"full", "new_full", "full_like"})
_SAME = frozenset(
    {"view", "reshape", "_unsafe_view", "permute", "transpose", "t", "slice", "select", "expand", "clone",
     "to", "_to_copy", "contiguous", "squeeze", "unsqueeze", "neg", "detach", "flatten", "unflatten",
     "sum", "mean", "cumsum"}
)  # fmt: skip
_PRODUCTS = frozenset({"mul", "bmm", "matmul", "mm", "einsum"})
_SUMS = frozenset({"add", "sub"})


def without_zeros(graph: fx.Graph) -> bool:
    """Rewrite ``graph`` in place: sums lose terms that are zero, products with zeros become zeros.

    Returns:
        Whether anything changed.
    """
    zero = _zeros(graph)
    products = any(short_name(n.target) in _PRODUCTS for n in zero)
    if not products or _read(graph, zero) != _read(graph, set()):
        return False  # a parameter that meets zeros only has a gradient of zeros, and would have none
    changed = False
    for node in list(graph.nodes):
        new = _instead(graph, node, zero)
        if new is not None:
            zero |= {new} if node in zero else set()
            node.replace_all_uses_with(new)
            changed = True
    return sweep(graph) or changed


def _instead(graph: fx.Graph, node: fx.Node, zero: set[fx.Node]) -> fx.Node | None:
    """What a sum or a product comes to."""
    name = short_name(node.target)
    if name in _PRODUCTS and node in zero:
        return _made(graph, node)
    if name == "stack" and any(piece in zero for piece in node.args[0]):  # type: ignore[union-attr]
        return _beside(graph, node)
    summed = name in _SUMS and _floating(node) and _settled(node)  # sizes are added, too
    return _other(graph, node, zero) if summed else None


def _read(graph: fx.Graph, zero: set[fx.Node]) -> set[fx.Node]:
    """The tensors of the model, and its inputs, that results depend on; ``zero`` depends on nothing."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in live or writes(node):
            live |= set(node.all_input_nodes) - zero
    return {n for n in live if n.op in ("get_attr", "placeholder")}


def _zeros(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are zero everywhere, whatever comes in; what is written to somewhere is not."""
    root: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and _floating(node):
            if _blank(node):
                root[node] = {node}
            elif (sources := _sources(node, root)) is not None:
                root[node] = sources
    written = {r for n in graph.nodes if writes(n) for r in root.get(n.args[0], ())}
    return {n for n, roots in root.items() if not roots & written}


def _sources(node: fx.Node, root: dict[fx.Node, set[fx.Node]]) -> set[fx.Node] | None:
    """The zeros that make ``node`` zero, or None where it may be something else."""
    name, read = short_name(node.target), node.all_input_nodes
    known = [root[n] for n in read if n in root]
    if name in _PRODUCTS and known:
        return set().union(*known)
    if name in _SAME and node.args and node.args[0] in root:
        return root[node.args[0]]  # type: ignore[index]
    terms = [a for a in node.args[:2] if name in _SUMS]
    return set().union(*known) if terms and all(isinstance(a, fx.Node) and a in root for a in terms) else None


def _blank(node: fx.Node) -> bool:
    """Whether an operator makes zeros."""
    name = short_name(node.target)
    if name in ZEROS:
        return True
    value = named_arguments(node, lambda n: n).get("fill_value") if name in _FILLED else None
    return isinstance(value, (int, float)) and value == 0


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _settled(node: fx.Node) -> bool:
    """Whether nobody writes to the result."""
    return not writes(node) and not any(writes(u) and u.args[0] is node for u in node.users)


def _other(graph: fx.Graph, node: fx.Node, zero: set[fx.Node]) -> fx.Node | None:
    """The term that is left of a sum."""
    args = named_arguments(node, lambda n: n)
    left, right, factor = args["self"], args["other"], args.get("alpha", 1)
    minus = short_name(node.target) == "sub"
    if right in zero and _like(left, node):
        return left  # type: ignore[no-any-return]
    if left in zero and factor == 1 and _like(right, node):
        with graph.inserting_before(node):
            return emit(graph, node, aten.neg.default, right) if minus else right
    return None


def _like(term: Any, node: fx.Node) -> bool:
    """Whether a term has the sizes and the type of the sum.

    A size that is known, and not one, is that of the sum, however the sum's is written.
    """
    if not isinstance(term, fx.Node) or any(writes(u) and u.args[0] is term for u in term.users):
        return False
    had, got = term.meta["val"], node.meta["val"]
    if had.dtype != got.dtype or len(had.shape) != len(got.shape):
        return False
    pairs = zip(had.shape, got.shape, strict=True)
    return all(static(a) not in (None, 1) or same_size(a, b) for a, b in pairs)


def _made(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Zeros in place of a product, where its sizes can be read from the factors."""
    value = node.meta["val"]
    found = [_place(node, n) if (number := static(n)) is None else number for n in value.shape]
    if None in found:
        return None
    with graph.inserting_before(node):
        sizes = [emit(graph, node, aten.sym_size.int, *n) if isinstance(n, tuple) else n for n in found]
        return emit(graph, node, aten.new_zeros.default, node.all_input_nodes[0], sizes, dtype=value.dtype)


def _beside(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Pieces with an axis each, one after another: there zeros fit themselves to the others."""
    args = named_arguments(node, lambda n: n)
    axis = int(args.get("dim", 0)) % node.meta["val"].dim()
    with graph.inserting_before(node):
        pieces = [emit(graph, node, aten.unsqueeze.default, piece, axis) for piece in args["tensors"]]
        return emit(graph, node, aten.cat.default, pieces, axis)


def _place(node: fx.Node, size: Any) -> tuple[fx.Node, int] | None:
    """A factor that has a symbolic size, and on which axis."""
    for source in node.all_input_nodes:
        shape = [str(n) for n in source.meta["val"].shape] if _floating(source) else []
        if str(size) in shape:
            return source, shape.index(str(size))
    return None
