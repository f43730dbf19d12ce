"""Alike: whether two modules do the same to other tensors, as far as their attributes say."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Collection, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from ecospa_fx.blocks import has_hooks
from ecospa_fx.twin import ALL_HOOKS

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Immutable types whose equal values mean the same."""
_TABLES = ("_parameters", "_buffers", "_modules")
_RUN = {*_TABLES, *ALL_HOOKS, "_non_persistent_buffers_set"}

Place = tuple[str, str]
"""A module's path within a block, and the name of an attribute there."""


def differences(one: nn.Module, other: nn.Module) -> set[Place] | None:
    """Attributes in which two modules, and those within them, differ.

    Args:
        one: a module.
        other: another one.

    Returns:
        The attributes, among them every object of which only its identity is known; None where they differ in
        what they are made of: classes, submodules, shapes and kinds of tensors, hooks.

    Example:
        >>> differences(nn.Dropout(0.1), nn.Dropout(0.2))
        {('', 'p')}
        >>> differences(nn.Linear(2, 3), nn.Linear(2, 4)) is None
        True
    """
    mine, its = (list(m.named_modules(remove_duplicate=False)) for m in (one, other))
    if [(n, type(m)) for n, m in mine] != [(n, type(m)) for n, m in its]:
        return None
    if not all(_same_tensors(a, b) for (_, a), (_, b) in zip(mine, its, strict=True)):
        return None
    if any(has_hooks(m) for name, m in [*mine, *its] if name):
        return None
    twins = {id(a): b for (_, a), (_, b) in zip(mine, its, strict=True)}
    return {(p, n) for (p, a), (_, b) in zip(mine, its, strict=True) for n in _unlike(p, a, b, twins)}


def _same_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether parameters and buffers have the same names, shapes and kinds."""
    return all(
        list(a) == list(b) and all(map(_same_kind, a.values(), b.values()))
        for a, b in ((one.__dict__[t], other.__dict__[t]) for t in _TABLES[:2])
    )


def _same_kind(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return kind(one) == kind(other)


def kind(tensor: torch.Tensor | None) -> tuple[Any, ...]:
    """All that a trace sees of a tensor; symbolic sizes as expressions."""
    if tensor is None:
        return ()
    strides, offset = (
        (tensor.stride(), tensor.storage_offset()) if tensor.layout is torch.strided else ((), 0)
    )
    sizes = tuple(map(expression, (*tensor.shape, *strides, offset)))
    return (type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad,
            tensor.is_leaf, tensor.dim(), sizes)  # fmt: skip


def expression(size: int | torch.SymInt) -> Any:
    """A size as something to compare: equal expressions of one trace are equal sizes."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _unlike(path: str, one: nn.Module, other: nn.Module, twins: dict[int, nn.Module]) -> Iterator[str]:
    mine, its = one.__dict__, other.__dict__
    ignored = _RUN if path else {*_RUN, "forward"}  # a block's own forward is what is replaced
    for name in sorted({*mine, *its} - ignored):
        if name not in mine or name not in its or not _same(mine[name], its[name], twins):
            yield name


def _same(one: Any, other: Any, twins: dict[int, nn.Module]) -> bool:
    """Whether two values mean the same to code that reads them."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Module):
        return twins.get(id(one)) is other
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and _same(one.__self__, other.__self__, twins)
    if isinstance(one, functools.partial):
        mine, its = ((p.func, p.args, p.keywords) for p in (one, other))
        return _same(mine, its, twins)
    if type(one) in (tuple, list):
        return len(one) == len(other) and all(_same(a, b, twins) for a, b in zip(one, other, strict=True))
    if type(one) in (dict, OrderedDict):
        return list(one) == list(other) and all(_same(v, other[k], twins) for k, v in one.items())
    if type(one) in (set, frozenset):
        return all(type(v) in PLAIN for v in one | other) and bool(one == other)
    return type(one) in PLAIN and bool(one == other)


def state_of(block: nn.Module, ignored: Collection[str] = ("forward",)) -> list[tuple[Any, ...]]:
    """Every attribute of a module and of those within it, by identity: code that sets one changes this."""
    return [
        (m, [(n, _entries(v)) for n, v in m.__dict__.items() if n not in ignored]) for m in block.modules()
    ]


def _entries(value: Any) -> Any:
    """What to compare of an attribute: numbers by value, containers by their entries, others by identity."""
    if type(value) in PLAIN:
        return value
    if type(value) in (dict, OrderedDict):
        return [(k, id(v)) for k, v in value.items()]
    return [id(v) for v in value] if type(value) in (tuple, list) else id(value)
