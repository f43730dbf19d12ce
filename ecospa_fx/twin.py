"""Twins: another object over the same tensors, so that the module itself need not be touched."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)

PRE_HOOKS = ("_forward_pre_hooks",)
FORWARD_HOOKS = (
    *PRE_HOOKS,
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
ALL_HOOKS = (*FORWARD_HOOKS, "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")


def twin_of(module: Module, without: tuple[str, ...], **attributes: Any) -> Module:
    """An object of the module's class that shares its parameters, buffers and submodules.

    Args:
        module: the module; it stays as it is.
        without: which hooks the twin does not have.
        attributes: what it has instead of the module's own.
    """
    twin = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, **{name: OrderedDict() for name in without}, **attributes}
    return twin
