"""Calls of a model: how arguments are named, which calls share one capture, and how inputs look."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ecospa_fx.errors import InputError
from ecospa_fx.folds import flat

POSITIONAL = "_positional_"
"""Prefix of the names given to arguments that ``forward`` only takes by position."""


def bind(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call by name, in an order that does not depend on how they were passed.

    Arguments that equal their default None are left out, so that ``f(x)`` and ``f(x, mask=None)`` are
    one signature.

    Raises:
        InputError: the call does not fit ``forward``.
    """
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InputError(f"the call does not fit forward{signature}: {error}") from error
    named: dict[str, Any] = {}
    position = 0
    kinds = {name: signature.parameters[name].kind for name in bound}
    starred = inspect.Parameter.VAR_POSITIONAL in kinds.values()  # then all before it go by position, too
    for name, value in bound.items():
        kind = kinds[name]
        if starred and kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            kind = inspect.Parameter.POSITIONAL_ONLY
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update({k: value[k] for k in sorted(value)})
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            for item in value if kind is inspect.Parameter.VAR_POSITIONAL else (value,):
                named[f"{POSITIONAL}{position}"] = item
                position += 1
        else:
            named[name] = value
    return {k: v for k, v in named.items() if v is not None or (k.startswith(POSITIONAL) and starred)}


def speaking(run: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` under the name and signature of ``forward``, for those who look arguments up by name."""

    @functools.wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return renamed


def unbind(named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a bound call.

    >>> unbind({"_positional_0": 1, "mask": 2})
    ([1], {'mask': 2})
    """
    positional = [v for k, v in named.items() if k.startswith(POSITIONAL)]
    return positional, {k: v for k, v in named.items() if not k.startswith(POSITIONAL)}


def required_arguments(forward: Callable[..., Any]) -> str:
    """The arguments that have no default, as they would be written in a call."""
    parameters = inspect.signature(forward).parameters.items()
    return ", ".join(n for n, p in parameters if p.default is p.empty) or "x"


def key_of(
    named: Mapping[str, Any], modules: Sequence[nn.Module], like: torch.Tensor | None
) -> tuple[Any, ...]:
    """What makes two calls share a capture: structure, constants, mode, dtype and device."""
    leaves, structure = flat(named)
    modes = bytes([m.training for m in modules])
    place = (like.dtype, like.device) if like is not None else ()
    return (structure, tuple(_kind(x) for x in leaves), modes, place)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return ("tensor", leaf.dtype, leaf.dim())
    try:
        hash(leaf)
    except TypeError:
        return type(leaf).__name__
    return leaf


def state_leaves(tree: pytree.TreeSpec, inside: bool = False) -> list[bool]:
    """For every leaf of a structure whether it belongs to a cache, by the name of a class around it."""
    if tree.is_leaf():
        return [inside]
    kind = tree.type
    inside = inside or (isinstance(kind, type) and any(c.__name__.endswith("Cache") for c in kind.__mro__))
    return [flag for child in tree.children() for flag in state_leaves(child, inside)]
