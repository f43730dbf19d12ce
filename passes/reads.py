"""Reads: how often Python may read values at one place while they are followed."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ecospa_fx.diagnosis import is_users
from ecospa_fx.errors import CaptureError

_MOST = 64
_READING = (
    *(torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__),
    *(torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__),
)


class UnrolledError(CaptureError):
    """Raised when a loop reads a value in each of too many rounds: a graph would hold them all."""


class FewReads(TorchFunctionMode):
    """Refuses to unroll long loops whose rounds depend on values, such as those that generate tokens.

    A place is a line together with the lines and modules that it was called from, so that a deep model may
    read a value in each of its layers.

    Raises:
        UnrolledError: more than 64 values are read at one place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READING:
            place = tuple(map(_line, _frames()))
            self.counts[place] += 1
            if self.counts[place] > _MOST:
                raise UnrolledError(_message())
        return func(*args, **(kwargs or {}))


def _frames() -> Iterator[FrameType]:
    """The user's frames, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _line(frame: FrameType) -> tuple[str, int, int | None]:
    owner = frame.f_locals.get("self")
    return frame.f_code.co_filename, frame.f_lineno, id(owner) if isinstance(owner, nn.Module) else None


def _message() -> str:
    frame = next(_frames())
    file, line = frame.f_code.co_filename, frame.f_lineno
    return (
        f"a data-dependent loop reads more than {_MOST} values into Python, which a graph would hold one "
        f"after the other\n  at {file}:{line}: {linecache.getline(file, line).strip()}\n"
        "  compile the part of the model that the loop calls, or pass an example with fewer rounds"
    )
