"""Cheaply: what ``torch.export`` does on the way and nobody asks for, left out while a model is captured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch._dynamo.config
from torch import fx


@contextlib.contextmanager
def cheaply() -> Iterator[None]:
    """Inside, an export that follows Python itself (``strict=False``) works less for the same graph.

    Torch keeps what kind of tensor each operator gave on sizes without values. To write that down, and to
    make a tensor from it, takes longer than to ask the operator again.
    """
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), code_on_demand():
        yield


@contextlib.contextmanager
def code_on_demand() -> Iterator[None]:
    """Inside, a graph module writes its Python code when it is first called, not after each change.

    The passes of an export change a graph many times, and read nodes only.
    """
    write: Callable[[fx.GraphModule], Any] = fx.GraphModule.recompile

    def written(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        write(module)
        return module(*args, **kwargs)

    def postponed(module: fx.GraphModule) -> None:
        type(module).forward = written  # every graph module has a class of its own
        module.__dict__.setdefault("_code", "")
        if hasattr(module.graph._codegen, "pytree_info"):
            info = module.graph._codegen.pytree_info
            module._in_spec, module._out_spec = info.in_spec, info.out_spec

    with mock.patch.object(fx.GraphModule, "recompile", postponed):
        yield
