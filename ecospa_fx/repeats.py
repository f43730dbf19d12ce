"""Repeats: the operators that stand for calls of alike blocks while a model is traced.

``enter`` and ``leave`` mark where a call begins and ends; ``repeat`` stands for a whole call that computes
what one before it did, with other tensors. None of them is left in a finished program.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ecospa_fx.alike import Place

Like = tuple[Sequence[int | torch.SymInt], Sequence[int | torch.SymInt], torch.dtype, torch.device]
"""Sizes, strides, dtype and device of a tensor."""
OUTPUTS: dict[int, list[Like]] = {}
"""What a call that may be repeated returns, by its number, during a trace."""
_NUMBERS = itertools.count()


class UnevenError(Exception):
    """Calls that should be alike are not: the trace has to follow each."""


@dataclass(eq=False)
class TracedCall:
    """A call of a block that was followed.

    Attributes:
        tracer: what wrote it down.
        block: the block.
        name: its name in the model.
        key: all that the trace saw of its arguments.
        equal: number of the call that was followed before and has to be its equal; None for the first.
        read: attributes among those that differ between blocks which it has read.
        number: in which its markers are told from those of other calls.
        result: how its outputs make up what it returns; numbers stand for outputs, -1 - i for input i.
        requires_grad: of each output.
    """

    tracer: object
    block: nn.Module
    name: str
    key: tuple[Any, ...]
    equal: int | None = None
    read: frozenset[Place] = frozenset()
    number: int = field(default_factory=lambda: next(_NUMBERS))
    result: Any = None
    requires_grad: tuple[bool, ...] = ()


def _enter(value: Tensor, call: int, place: int) -> Tensor:
    return value.clone()


def _leave(value: Tensor, call: int, place: int) -> Tensor:
    return value.clone()


def _repeat(values: list[Tensor], tensors: list[Tensor], call: int) -> list[Tensor]:
    raise RuntimeError("this operator stands for a call of a block and cannot run")


def like(value: Tensor) -> Like:
    """What it takes to make another tensor of the kind."""
    return value.shape, value.stride(), value.dtype, value.device


def _made(sizes: Any, strides: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty_strided(sizes, strides, dtype=dtype, device=device)


def _marker(function: Any, name: str) -> Any:
    made: Any = torch.library.custom_op(f"ecospa_fx::{name}", function, mutates_args=())
    made.register_fake(lambda value, call, place: _made(*like(value)))
    made.register_autograd(lambda context, grad: (grad, None, None))
    return made


enter: Any = _marker(_enter, "enter")
leave: Any = _marker(_leave, "leave")
repeat: Any = torch.library.custom_op("ecospa_fx::repeat", _repeat, mutates_args=())
repeat.register_fake(lambda values, tensors, call: [_made(*kind) for kind in OUTPUTS[call]])
repeat.register_autograd(_repeat)
ENTER, LEAVE, REPEAT = (op._opoverload for op in (enter, leave, repeat))
