"""Sizes of captured tensors: numbers, symbols, and symbols that can only be one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

_UNBACKED = 4099  # stands for a size that depends on data: unlike any other


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
    """The size in the example that was captured."""
    fixed = static(size)
    if fixed is not None:
        return fixed
    assert isinstance(size, torch.SymInt)
    known = size.node.hint
    return int(known) if known is not None else _UNBACKED


def same_sizes(a: Sequence[int | torch.SymInt], b: Sequence[int | torch.SymInt]) -> bool:
    """Whether two shapes are written alike: to compare symbols themselves would add guards to the capture."""
    return [str(n) for n in a] == [str(n) for n in b]
