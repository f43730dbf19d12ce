"""Forms: tensors as functions of places, for all sizes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from ecospa_fx.linear import Linear

Facts = frozenset[Linear]
"""Expressions none of which is more than 0, at places where a mask is true."""

Needs = frozenset[Linear | fx.Node]
"""What has to hold: expressions that are not more than 0, and inputs that hold nothing but ones."""

ALWAYS: Facts = frozenset()
NEVER: Facts = frozenset([Linear(1)])
NOTHING: Needs = frozenset()


class UnknownFormError(Exception):
    """A value that is not followed."""


@dataclass(frozen=True)
class Penalty:
    """A mask that is added: 0 where the facts hold, and so low elsewhere that nothing is left."""

    facts: Facts


@dataclass(frozen=True)
class Form:
    """A tensor as a function of places.

    Attributes:
        shape: its sizes.
        value: whole numbers, truth, a mask to be added, or one floating-point number.
        needs: what this takes for granted.
    """

    shape: tuple[Linear, ...]
    value: Linear | Facts | Penalty | float
    needs: Needs = NOTHING


def moved(form: Form, shape: tuple[Linear, ...], to: Callable[[int], Linear]) -> Form:
    """The form with other expressions for its places."""
    value = form.value
    if isinstance(value, Linear):
        value = value.moved(to)
    elif isinstance(value, Penalty):
        value = Penalty(frozenset(f.moved(to) for f in value.facts))
    elif isinstance(value, frozenset):
        value = frozenset(f.moved(to) for f in value)
    return Form(shape, value, form.needs)


def broadcast(form: Form, shape: tuple[Linear, ...]) -> Form:
    """Aligned at the last axis; axes of size 1 repeat."""
    lead = len(shape) - len(form.shape)
    one = [n.number == 1 for n in form.shape]
    return moved(form, shape, lambda a: Linear() if one[a] else Linear.place(a + lead))


def told(facts: Facts) -> Facts:
    """Without those that hold for every size, and one of two numbers."""
    left = frozenset(f for f in facts if f.number is None or f.number > 0)
    return NEVER if any(f.number is not None for f in left) else left


def negated(facts: Facts) -> Facts:
    """Where the facts do not hold."""
    if facts == ALWAYS:
        return NEVER
    if len(facts) > 1:
        raise UnknownFormError
    return told(frozenset(Linear(1) - f for f in facts))
