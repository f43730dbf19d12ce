"""Linear: sums of whole multiples of variables, such as sizes that are not known and places in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_AXIS, _OTHER = "@", "?"


@dataclass(frozen=True)
class Linear:
    """``constant + sum(factor * variable)`` over whole numbers.

    A variable ``@2`` is the place along axis 2 of a tensor, ``s7`` a size, which is never negative, and one
    that begins with ``?`` anything else.

    Attributes:
        constant: the number.
        terms: variables and their factors, sorted, without factors of 0.
    """

    constant: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(constant: int, terms: Mapping[str, int]) -> Linear:
        """Without the factors of 0."""
        return Linear(constant, tuple(sorted((k, v) for k, v in terms.items() if v)))

    @staticmethod
    def size(value: Any) -> Linear:
        """A number or a symbolic size.

        Raises:
            TypeError: it is neither.
        """
        if isinstance(value, torch.SymInt):
            if not value.node.expr.is_number:
                return _symbolic(value.node.expr)
            value = int(value.node.expr)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{value!r} is no size")
        return Linear(value)

    @staticmethod
    def place(axis: int) -> Linear:
        """The place along an axis.

        >>> str(Linear.place(1) - Linear.place(0) + Linear(3))
        '3 - @0 + @1'
        """
        return Linear(0, ((f"{_AXIS}{axis}", 1),))

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for name, factor in other.terms:
            terms[name] = terms.get(name, 0) + factor
        return Linear.of(self.constant + other.constant, terms)

    def __neg__(self) -> Linear:
        return Linear(-self.constant, tuple((k, -v) for k, v in self.terms))

    def __sub__(self, other: Linear) -> Linear:
        return self + -other

    def __mul__(self, factor: int) -> Linear:
        return Linear.of(self.constant * factor, {k: v * factor for k, v in self.terms})

    def __str__(self) -> str:
        return f"{self.constant}" + "".join(
            f" {'+' if v > 0 else '-'} {'' if abs(v) == 1 else abs(v)}{k}" for k, v in self.terms
        )

    @property
    def number(self) -> int | None:
        """The value, where there is no variable."""
        return None if self.terms else self.constant

    @property
    def axes(self) -> dict[int, int]:
        """Axes whose places count, and their factors."""
        return {int(k[1:]): v for k, v in self.terms if k.startswith(_AXIS)}

    @property
    def sizes(self) -> tuple[str, ...]:
        """Variables that are no places."""
        return tuple(k for k, _ in self.terms if not k.startswith(_AXIS))

    @property
    def never_positive(self) -> bool:
        """Whether no sizes make it more than 0; there is no place in it."""
        return self.constant <= 0 and all(v < 0 and k[0] not in _AXIS + _OTHER for k, v in self.terms)

    def moved(self, to: Callable[[int], Linear]) -> Linear:
        """With other expressions for the places along the axes."""
        fixed = {k: v for k, v in self.terms if not k.startswith(_AXIS)}
        result = Linear.of(self.constant, fixed)
        for axis, factor in self.axes.items():
            result = result + to(axis) * factor
        return result

    def largest(self, shape: tuple[Linear, ...]) -> Linear:
        """An expression in sizes alone that it never exceeds within a tensor of this shape."""
        factors = self.axes
        return self.moved(
            lambda axis: shape[axis] - Linear(1) if factors[axis] > 0 else Linear(),
        )

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number, for given sizes."""
        return self.constant + sum(factor * sizes[name] for name, factor in self.terms)


def _symbolic(expression: Any) -> Linear:
    constant, terms = 0, {}
    for monomial, factor in expression.as_coefficients_dict().items():
        if int(factor) != factor:
            return Linear(0, ((f"{_OTHER}{expression}", 1),))
        if monomial.is_number:
            constant += int(monomial * factor)
        else:
            known = monomial.is_Symbol and str(monomial).startswith("s")
            terms[str(monomial) if known else f"{_OTHER}{monomial}"] = int(factor)
    return Linear.of(constant, terms)
