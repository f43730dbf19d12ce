"""Sizes of captured tensors: numbers, symbols, and symbols that can only be one number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sympy  # type: ignore[import-untyped]
import torch

_UNBACKED = 4099  # stands for a number that depends on data: unlike any other


def static(size: int | torch.SymInt) -> int | None:
    """The size as a number, if it can be only one; None if it is free."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    if expression.is_number:
        return int(expression)
    environment = size.node.shape_env
    known = _known.setdefault(environment, {})
    if expression not in known:
        bounds = environment.bound_sympy(expression)
        known[expression] = int(bounds.lower) if bounds.is_singleton() else None
    return known[expression]


_known: WeakKeyDictionary[Any, dict[Any, int | None]] = WeakKeyDictionary()


def hint(size: int | torch.SymInt) -> int:
    """The size in the example that was captured; one number for every size that depends on data."""
    known = _example(size)
    return _UNBACKED if known is None else known


def supposed(size: int | torch.SymInt) -> int:
    """The size in the example; where it is computed from numbers that depend on data, as these give it."""
    known = _example(size)
    if known is not None or not isinstance(size, torch.SymInt):
        return hint(size)
    expression, environment = size.node.expr, size.node.shape_env
    numbers = {s: sympy.Integer(_concluded(s, environment)) for s in expression.free_symbols}
    value = expression.xreplace(numbers)
    return int(value) if value.is_number else _UNBACKED


def _example(size: int | torch.SymInt) -> int | None:
    """The size in the example; None where it depends on data."""
    fixed = static(size)
    if fixed is not None or not isinstance(size, torch.SymInt):
        return fixed
    return None if size.node.hint is None else int(size.node.hint)


def _concluded(symbol: Any, environment: Any) -> int:
    """The number in the example, where it is known or follows from what is asserted of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its heir does not tell what is unknown
        found = environment.size_hint(symbol, allow_none=True)
    return _UNBACKED if found is None else int(found)


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are written alike: to compare symbols themselves would add guards to the capture."""
    return str(a) == str(b)


def same_sizes(a: Sequence[int | torch.SymInt], b: Sequence[int | torch.SymInt]) -> bool:
    """Whether two shapes are written alike."""
    return len(a) == len(b) and all(map(same_size, a, b))
