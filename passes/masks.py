"""Masks: what the masks of attention say, for all sizes at once.

A capture writes a causal mask out: places compared with places. Here such comparisons are followed as
inequalities between linear expressions, so that a mask is told from another that only looks like it for
small sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from ecospa_fx.forms import (
    ALWAYS,
    NEVER,
    NOTHING,
    Facts,
    Form,
    Needs,
    Penalty,
    UnknownFormError,
    broadcast,
    negated,
    told,
)
from ecospa_fx.linear import Linear
from ecospa_fx.passes.places import (
    Step,
    any_layout,
    compared,
    constant,
    counted,
    expanded,
    less,
    looked_up,
    most,
    padded,
    same,
    selected,
    shape_of,
    sliced,
    slope,
    summed_up,
    swapped,
    total,
    unequal,
    with_axis,
)
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.routing import PLAIN

aten = torch.ops.aten


class Masks:
    """Forms of the nodes of a graph, found when they are asked for.

    Args:
        ones: inputs that are taken to hold nothing but ones.
    """

    def __init__(self, ones: Iterable[fx.Node] = ()) -> None:
        self._ones = frozenset(ones)
        self._known: dict[fx.Node, Form | None] = {}

    def form(self, node: Any) -> Form | None:
        """What a node holds, or None where that is not known."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self._known:
            try:
                self._known[node] = self._found(node)
            except (UnknownFormError, TypeError, ValueError, KeyError, IndexError):
                self._known[node] = None
        return self._known[node]

    def _found(self, node: fx.Node) -> Form:
        if node in self._ones:
            truth = node.meta["val"].dtype == torch.bool
            return Form(shape_of(node), ALWAYS if truth else Linear(1), frozenset([node]))
        rule = _RULES.get(node.target)
        if rule is None or not isinstance(node.meta.get("val"), torch.Tensor):
            raise UnknownFormError
        return rule(Step(self.form, node, named_arguments(node, lambda n: n)))


def _truths(step: Step, names: Sequence[str]) -> tuple[list[Facts], Needs]:
    forms = [broadcast(step.tensor(n), step.shape) for n in names]
    if not all(isinstance(f.value, frozenset) for f in forms):
        raise UnknownFormError
    return [f.value for f in forms], NOTHING.union(*(f.needs for f in forms))  # type: ignore[misc]


def _and(step: Step) -> Form:
    (a, b), needs = _truths(step, ("self", "other"))
    return Form(step.shape, told(a | b), needs)


def _or(step: Step) -> Form:
    (a, b), needs = _truths(step, ("self", "other"))
    if ALWAYS in (a, b):
        return Form(step.shape, ALWAYS, needs)
    if NEVER not in (a, b):
        raise UnknownFormError
    return Form(step.shape, b if a == NEVER else a, needs)


def _inverted(step: Step) -> Form:
    (a,), needs = _truths(step, ("self",))
    return Form(step.shape, negated(a), needs)


def _triangle(lower: bool) -> Callable[[Step], Form]:
    def rule(step: Step) -> Form:
        form, rank = step.tensor(), len(step.shape)
        beyond = Linear.place(rank - 1) - Linear.place(rank - 2) - step.size("diagonal", 0)
        kept = beyond if lower else -beyond
        if isinstance(form.value, frozenset):
            return Form(step.shape, form.value | {kept}, form.needs)
        if isinstance(form.value, float) and _is_low(form.value, step.dtype):
            return Form(step.shape, Penalty(frozenset([Linear(1) - kept])), form.needs)
        raise UnknownFormError

    return rule


def _where(step: Step) -> Form:
    (facts,), needs = _truths(step, ("condition",))
    a, b = (step.tensor(n).value for n in ("self", "other"))
    return Form(step.shape, _penalty(facts, a, b, step.dtype), needs)


def _filled(step: Step) -> Form:
    (facts,), needs = _truths(step, ("mask",))
    have, value = step.tensor(), step.tensor("value").value
    return Form(step.shape, _penalty(facts, value, have.value, step.dtype), needs | have.needs)


def _penalty(facts: Facts, a: Any, b: Any, dtype: torch.dtype) -> Penalty:
    """``a`` where the facts hold, else ``b``, one of which is 0 and the other one low."""
    a, b = (float(v.number or 0) if isinstance(v, Linear) and not v.terms else v for v in (a, b))
    if not (isinstance(a, float) and isinstance(b, float)):
        raise UnknownFormError
    if a == 0 and _is_low(b, dtype):
        return Penalty(facts)
    if b == 0 and _is_low(a, dtype):
        return Penalty(negated(facts))
    raise UnknownFormError


def _is_low(value: float, dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and value <= torch.finfo(dtype).min


_LAYOUTS = ("view", "reshape", "permute", "squeeze", "flatten", "unflatten", "flip", "repeat", "movedim")
_BY_NAME: dict[tuple[str, ...], Callable[[Step], Form]] = {
    ("arange",): counted,
    ("ones", "new_ones", "ones_like"): lambda step: constant(step, 1),
    ("zeros", "new_zeros", "zeros_like"): lambda step: constant(step, 0),
    ("full", "new_full", "full_like"): constant,
    ("add", "sub"): total,
    ("lt",): compared(less),
    ("le",): compared(most),
    ("gt",): compared(lambda a, b: less(b, a)),
    ("ge",): compared(lambda a, b: most(b, a)),
    ("eq",): compared(lambda a, b: most(a, b) | most(b, a)),
    ("ne",): compared(unequal),
    ("__and__", "bitwise_and", "logical_and"): _and,
    ("__or__", "bitwise_or", "logical_or"): _or,
    ("bitwise_not", "logical_not"): _inverted,
    (*PLAIN, "lift_fresh", "lift_fresh_copy"): same,
    _LAYOUTS: any_layout,
    ("unsqueeze",): with_axis,
    ("expand",): expanded,
    ("transpose",): swapped,
    ("slice",): sliced,
    ("select",): selected,
    ("index",): looked_up,
    ("diff",): slope,
    ("cumsum",): summed_up,
    ("pad",): padded,
    ("tril",): _triangle(True),
    ("triu",): _triangle(False),
    ("where",): _where,
    ("masked_fill",): _filled,
}
_RULES: dict[Any, Callable[[Step], Form]] = {
    getattr(getattr(aten, name), overload): rule
    for names, rule in _BY_NAME.items()
    for name in names
    for overload in getattr(aten, name).overloads()
}
