"""Cheaply: what ``torch.export`` does on the way and nobody asks for, left out while a model is captured."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType, ModuleType
from typing import Any
from unittest import mock

import torch._dynamo.config
from torch import fx
from torch.fx import proxy
from torch.fx.experimental import proxy_tensor, symbolic_shapes


@contextlib.contextmanager
def cheaply() -> Iterator[None]:
    """Inside, an export that follows Python itself (``strict=False``) works less for the same graph.

    Torch keeps what kind of tensor each operator gave on sizes without values. To write that down, and to
    make a tensor from it, takes longer than to ask the operator again. It notes memory formats of every
    value, which nobody reads, and the text of every line of Python on the stack, of which few are kept.
    """
    with (
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
        code_on_demand(),
        _replaced(proxy_tensor, "_extract_tensor_metadata", _no_formats),
        _replaced(proxy, "CapturedTraceback", _Frames),
    ):
        yield


def _replaced(module: ModuleType, name: str, value: Any) -> AbstractContextManager[Any]:
    """Torch promises none of these names: one that is gone costs time, and nothing else."""
    known = hasattr(module, name)
    return mock.patch.object(module, name, value) if known else contextlib.nullcontext()


def _no_formats(value: Any) -> None:  # a Mock would keep every value
    return None


class _Frames:
    """Where a node comes from, as torch collects it; the text of a line is read when it is shown."""

    def __init__(self, summary: traceback.StackSummary) -> None:
        self._summary = summary

    @classmethod
    def extract(cls, **_: Any) -> _Frames:
        """From the outermost frame to the caller."""
        frame: FrameType | None = sys._getframe(1)
        found, dull = [], symbolic_shapes.uninteresting_files()
        while frame is not None:
            code = frame.f_code
            if code.co_filename not in dull or code.co_name == "forward":  # torch drops the others
                line = (code.co_filename, frame.f_lineno, code.co_name)
                found.append(traceback.FrameSummary(*line, lookup_line=False))
            frame = frame.f_back
        return cls(traceback.StackSummary(reversed(found)))

    def summary(self) -> traceback.StackSummary:
        """What was found."""
        return self._summary


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
