"""Places: what operators make of tensors that are functions of places.

Whatever an operator does to values that are not known, or in a way that is not told here, has no form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    moved,
    told,
)
from ecospa_fx.linear import Linear


@dataclass(frozen=True)
class Step:
    """One operator: its node, and its arguments as forms, sizes and plain values."""

    lookup: Callable[[fx.Node], Form | None]
    node: fx.Node
    args: Mapping[str, Any]

    def tensor(self, name: str = "self") -> Form:
        """A tensor, or a number in place of one."""
        return self.as_form(self.args[name])

    def as_form(self, value: Any) -> Form:
        """What a tensor or a number among the arguments holds."""
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor):
            found = self.lookup(value)
            if found is None:
                raise UnknownFormError
            return found
        if isinstance(value, bool):
            return Form((), ALWAYS if value else NEVER)
        return Form((), value if isinstance(value, float) else self.as_size(value))

    def size(self, name: str, default: int | None = None) -> Linear:
        """A size among the arguments."""
        value = self.args.get(name)
        return self.as_size(default if value is None else value)

    @staticmethod
    def as_size(value: Any) -> Linear:
        """A number, or a symbol of the capture."""
        return Linear.size(value.meta.get("val") if isinstance(value, fx.Node) else value)

    @property
    def shape(self) -> tuple[Linear, ...]:
        """Of the result."""
        return shape_of(self.node)

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        dtype = self.node.meta["val"].dtype
        assert isinstance(dtype, torch.dtype)
        return dtype


def shape_of(node: fx.Node) -> tuple[Linear, ...]:
    """Sizes of what a node holds."""
    return tuple(Linear.size(n) for n in node.meta["val"].shape)


def numbers(step: Step, *names: str) -> tuple[list[Linear], Needs]:
    """Whole numbers of several operands at the places of the result."""
    forms = [broadcast(step.tensor(n), step.shape) for n in names]
    values = [f.value for f in forms]
    if not all(isinstance(v, Linear) for v in values):
        raise UnknownFormError
    return values, NOTHING.union(*(f.needs for f in forms))  # type: ignore[return-value]


def counted(step: Step) -> Form:
    """Places, one after the other."""
    if step.dtype.is_floating_point or step.size("step", 1).number != 1:
        raise UnknownFormError
    return Form(step.shape, Linear.place(0) + step.size("start", 0))


def constant(step: Step, number: float | None = None) -> Form:
    """One number, or truth, everywhere."""
    given = step.args["fill_value"] if number is None else number
    if isinstance(given, fx.Node) or not isinstance(given, (bool, int, float)):
        raise UnknownFormError
    if step.dtype == torch.bool:
        return Form(step.shape, ALWAYS if given else NEVER)
    return Form(step.shape, float(given) if step.dtype.is_floating_point else Linear(int(given)))


def total(step: Step) -> Form:
    """Sums and differences of whole numbers."""
    (a, b), needs = numbers(step, "self", "other")
    factor = step.args.get("alpha", 1)
    b = b * (factor if isinstance(factor, int) else 0)
    if not isinstance(factor, int) or step.dtype.is_floating_point:
        raise UnknownFormError
    return Form(step.shape, a - b if "sub" in str(step.node.target) else a + b, needs)


def compared(facts: Callable[[Linear, Linear], Facts]) -> Callable[[Step], Form]:
    """A rule for comparisons that hold where the ``facts`` about both operands do."""

    def rule(step: Step) -> Form:
        (a, b), needs = numbers(step, "self", "other")
        return Form(step.shape, told(facts(a, b)), needs)

    return rule


def less(a: Linear, b: Linear) -> Facts:
    """``a < b``."""
    return frozenset([a - b + Linear(1)])


def most(a: Linear, b: Linear) -> Facts:
    """``a <= b``."""
    return frozenset([a - b])


def unequal(a: Linear, b: Linear) -> Facts:
    """``a != b``, where it is the same everywhere."""
    gap = (a - b).number
    if gap is None:
        raise UnknownFormError
    return ALWAYS if gap else NEVER


def same(step: Step) -> Form:
    """The same values, perhaps as another kind of number."""
    form = step.tensor()
    before, after = step.args["self"].meta["val"].dtype, step.dtype
    if after == torch.bool and isinstance(form.value, Linear):
        return Form(step.shape, unequal(form.value, Linear()), form.needs)
    whole = isinstance(form.value, Linear) and not after.is_floating_point
    if before != after and not whole:  # low in one may not be low in the other
        raise UnknownFormError
    return replace(form, shape=step.shape)


def with_axis(step: Step) -> Form:
    """One more axis, of size 1."""
    form, rank = step.tensor(), len(step.shape)
    new = step.args["dim"] % rank
    return moved(form, step.shape, lambda a: Linear.place(a + (a >= new)))


def expanded(step: Step) -> Form:
    """Axes of size 1 repeat."""
    return broadcast(step.tensor(), step.shape)


def swapped(step: Step) -> Form:
    """Two axes change places."""
    rank = len(step.shape)
    a, b = (step.args[n] % rank for n in ("dim0", "dim1"))
    return moved(step.tensor(), step.shape, lambda i: Linear.place({a: b, b: a}.get(i, i)))


def sliced(step: Step) -> Form:
    """A range along an axis."""
    axis, start = step.args.get("dim", 0) % len(step.shape), step.size("start", 0)
    if step.args.get("step", 1) != 1 or not (-start).never_positive:
        raise UnknownFormError
    return moved(step.tensor(), step.shape, lambda a: Linear.place(a) + (start if a == axis else Linear()))


def selected(step: Step) -> Form:
    """One place along an axis."""
    axis, index = step.args.get("dim", 0) % (len(step.shape) + 1), step.size("index")
    if not (-index).never_positive:
        raise UnknownFormError
    return moved(step.tensor(), step.shape, lambda a: index if a == axis else Linear.place(a - (a > axis)))


def any_layout(step: Step) -> Form:
    """Another layout of a value that is the same everywhere."""
    form = step.tensor()
    facts = form.value.facts if isinstance(form.value, Penalty) else form.value
    several = facts if isinstance(facts, frozenset) else [facts]
    if any(isinstance(f, Linear) and f.axes for f in several):
        raise UnknownFormError
    return replace(form, shape=step.shape)


def looked_up(step: Step) -> Form:
    """Looked up at places that are expressions of places themselves."""
    form, given = step.tensor(), step.args["indices"]
    at = [broadcast(step.as_form(i), step.shape) for i in given]
    values = [i.value for i in at]
    if len(at) != len(form.shape) or not all(isinstance(v, Linear) for v in values):
        raise UnknownFormError
    needs = NOTHING.union(form.needs, *(i.needs for i in at))
    for value, size in zip(values, form.shape, strict=True):
        assert isinstance(value, Linear)
        needs |= {(-value).largest(step.shape), value.largest(step.shape) - size + Linear(1)}
    return replace(moved(form, step.shape, lambda a: values[a]), needs=needs)  # type: ignore[arg-type,return-value]


def slope(step: Step) -> Form:
    """Differences along a line are its slope, if what comes before it lies on it."""
    form, first = step.tensor(), step.tensor("prepend")
    axis = step.args.get("dim", -1) % len(form.shape)
    if step.args.get("n", 1) != 1 or step.args.get("append") is not None:
        raise UnknownFormError
    if not (isinstance(form.value, Linear) and isinstance(first.value, Linear)):
        raise UnknownFormError
    steps = form.value.axes.get(axis, 0)
    before = form.value.moved(lambda a: Linear(-1) if a == axis else Linear.place(a))
    start = first.value.moved(lambda a: Linear() if a == axis else Linear.place(a))
    if first.shape[axis].number != 1 or before != start:
        raise UnknownFormError
    return Form(step.shape, Linear(steps), form.needs | first.needs)


def summed_up(step: Step) -> Form:
    """Sums of nothing are nothing."""
    form = step.tensor()
    if form.value not in (NEVER, Linear()):
        raise UnknownFormError
    return Form(step.shape, Linear(), form.needs)


def padded(step: Step) -> Form:
    """Nothing is added, where the sizes say so."""
    form, mode = step.tensor(), step.args.get("mode", "constant")
    amounts = [step.as_size(n) for n in step.args["pad"]]
    if mode != "constant":
        raise UnknownFormError
    return Form(step.shape, form.value, form.needs.union(*({n, -n} for n in amounts)))
