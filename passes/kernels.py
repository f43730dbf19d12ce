"""Kernels: attention as the model's own code would call it.

A capture writes masks out and repeats key heads, for it holds for all inputs at once. The kernels that eager
mode takes want neither. Where a mask is proved to hide just what comes later, or nothing, it goes; where that
hangs on the values of a padding mask, or on sizes, a second graph is made for the calls that allow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ecospa_fx import ops
from ecospa_fx.collecting import uncollected
from ecospa_fx.forms import Form, Needs, Penalty, broadcast
from ecospa_fx.linear import Linear
from ecospa_fx.passes.bindings import call_directly
from ecospa_fx.passes.masks import Masks
from ecospa_fx.passes.places import shape_of
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.sweep import sweep
from ecospa_fx.shortcut import Shortcut

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Finding:
    """What a mask says.

    Attributes:
        causal: it hides what comes later; otherwise it hides nothing.
        needs: what this takes for granted.
    """

    causal: bool
    needs: Needs


def unmasked(graph: fx.Graph) -> bool:
    """Take masks out of ``graph``, in place, that say the same for all inputs.

    Returns:
        Whether anything changed.
    """
    found = {n: f for n, f in findings(graph).items() if not f.needs}
    for node, finding in found.items():
        _unmask(node, finding)
    if found:
        sweep(graph)
    return bool(found)


@uncollected()
def kernels(graph: fx.Graph) -> tuple[fx.Graph, tuple[Shortcut, ...]]:
    """The graph with attention in the form that kernels want, and graphs for some of its inputs."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    ones = [n for n in inputs if _whole(n)]
    sizes = _sizes_of(inputs)
    known = {n: f for n, f in findings(graph, ones).items() if _decidable(f.needs, sizes)}
    every = [f.needs for f in known.values()]
    wanted = {frozenset().union(*every), frozenset().union(*(n for n in every if not _limits(n)))}
    shortcuts = [
        _shortcut(graph, {n: f for n, f in known.items() if f.needs <= needs}, needs, inputs, sizes)
        for needs in sorted(wanted - {frozenset()}, key=len, reverse=True)
    ]
    return _called(graph, {}), tuple(shortcuts)


def findings(graph: fx.Graph, ones: Iterable[fx.Node] = ()) -> dict[fx.Node, Finding]:
    """What the masks of all attentions say.

    Args:
        graph: with the values of the capture in its metadata.
        ones: inputs that are taken to hold nothing but ones.
    """
    masks = Masks(ones)
    found = {n: _finding(masks, n) for n in graph.nodes if n.target is _ATTENTION}
    return {n: f for n, f in found.items() if f is not None}


def _finding(masks: Masks, node: fx.Node) -> Finding | None:
    args = named_arguments(node, lambda n: n)
    form = masks.form(args.get("attn_mask"))
    dense = node.meta.get("dense", node)
    if form is None or args.get("is_causal") or len(form.shape) < 2:
        return None
    query, key = (a.meta.get("val") for a in dense.args[:2])
    lengths = (Linear.size(query.shape[-2]), Linear.size(key.shape[-2]))
    return _told(broadcast(form, (*form.shape[:-2], *lengths)))


def _told(form: Form) -> Finding | None:
    """Every fact holds everywhere, is that of a causal mask, or hangs on sizes."""
    facts = form.value.facts if isinstance(form.value, Penalty) else form.value
    if not isinstance(facts, frozenset):
        return None
    rows, columns = form.shape[-2:]
    rank = len(form.shape)
    later = Linear.place(rank - 1) - Linear.place(rank - 2)
    needs, causal = set(form.needs), False
    for fact in facts:
        rest = fact - later
        if rows.number != 1 and not rest.axes:
            causal = True
            needs |= {rest, -rest, rows - columns, columns - rows}
        else:
            needs.add(fact.largest(form.shape))
    left = frozenset(n for n in needs if isinstance(n, fx.Node) or not n.never_positive)
    return None if any(_hopeless(n) for n in _limits(left)) else Finding(causal, left)


def _hopeless(limit: Linear) -> bool:
    """Whether it would take a size of 0."""
    return limit.constant >= 0 and all(v > 0 for _, v in limit.terms)


def _limits(needs: Needs) -> frozenset[Linear]:
    return frozenset(n for n in needs if isinstance(n, Linear))


def _whole(node: fx.Node) -> bool:
    """Whether an input may be a padding mask."""
    value = node.meta.get("val")
    plain = isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex())
    return plain and value.dim() > 1  # type: ignore[union-attr]


def _sizes_of(inputs: Sequence[fx.Node]) -> dict[str, tuple[int, int]]:
    """Where each symbol can be read from."""
    found: dict[str, tuple[int, int]] = {}
    for i, node in enumerate(inputs):
        if isinstance(node.meta.get("val"), torch.Tensor):
            for axis, size in enumerate(shape_of(node)):
                if size.constant == 0 and len(size.terms) == 1 and size.terms[0][1] == 1:
                    found.setdefault(size.terms[0][0], (i, axis))
    return found


def _decidable(needs: Needs, sizes: Mapping[str, Any]) -> bool:
    return all(name in sizes for limit in _limits(needs) for name in limit.sizes)


def _shortcut(
    graph: fx.Graph,
    found: Mapping[fx.Node, Finding],
    needs: Needs,
    inputs: Sequence[fx.Node],
    sizes: Mapping[str, tuple[int, int]],
) -> Shortcut:
    limits = _limits(needs)
    named = {name for limit in limits for name in limit.sizes}
    ones = tuple(i for i, n in enumerate(inputs) if n in needs)
    return Shortcut(_called(graph, found), ones, limits, {n: sizes[n] for n in named})


def _called(graph: fx.Graph, found: Mapping[fx.Node, Finding]) -> fx.Graph:
    """A copy in which attention is called as kernels want it, and all else as Python does."""
    copied = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        env[node] = new = copied.node_copy(node, env.__getitem__)
        if node.target is _ATTENTION:
            if node in found:
                _unmask(new, found[node])
            _unrepeat(new)
            new.target = ops.attention
    sweep(copied)
    for node in copied.nodes:
        call_directly(node)
    return copied


def _unmask(node: fx.Node, finding: Finding) -> None:
    args = named_arguments(node, lambda n: n) | {"attn_mask": None, "is_causal": finding.causal}
    node.args = tuple(args.pop(n) for n in ("query", "key", "value"))
    node.kwargs = {k: v for k, v in args.items() if v is not None}


def _unrepeat(node: fx.Node) -> None:
    """Key and value heads before they were repeated for their groups of query heads."""
    sources = [_before_repeat(node.args[i]) for i in (1, 2)]
    if node.kwargs.get("enable_gqa") or None in sources or len(node.args) > 6:
        return
    node.args = (node.args[0], *sources, *node.args[3:])
    node.kwargs = {**node.kwargs, "enable_gqa": True}


def _before_repeat(node: Any) -> fx.Node | None:
    """``x`` from ``x[:, :, None].expand(b, h, n, s, d).reshape(b, h * n, s, d)``."""
    wide = _source(node, _VIEWS)
    wide = _source(wide, (aten.clone.default,)) or wide
    thin = _source(wide, (aten.expand.default,))
    before = _source(thin, (aten.unsqueeze.default,))
    if wide is None or thin is None or before is None or thin.args[1] != 2:
        return None
    flat, many = shape_of(node), shape_of(wide)
    heads, times = many[1], many[2].number or 0
    merged = (many[0], heads * times, *many[3:])
    return before if len(many) == 5 and flat == merged else None


def _source(node: Any, targets: tuple[Any, ...]) -> fx.Node | None:
    """What an operator takes, if it is one of these."""
    known = isinstance(node, fx.Node) and node.target in targets and "val" in node.meta
    found = node.args[0] if known else None
    return found if isinstance(found, fx.Node) else None
