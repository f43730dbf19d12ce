"""Open: capture one more signature of a model that may have shrunk, and analyse it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ecospa_fx.errors import CaptureError
from ecospa_fx.passes.capture import capture
from ecospa_fx.passes.check import check_capture
from ecospa_fx.program import Program
from ecospa_fx.sharded import is_sharded
from ecospa_fx.skeleton import dense_stand_ins


def open_signature(
    model: nn.Module, inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], check: bool
) -> Program:
    """Capture ``model`` as it was before anything was removed.

    Args:
        model: the original module.
        inputs: one call's arguments by name.
        shapes: dense shape of every parameter.
        check: compare with the eager model, where that is possible (nothing removed yet, not sharded, not on
            meta).

    Raises:
        CaptureError: no variant of the mode can be captured, or the capture is wrong.
    """
    failure: CaptureError | None = None
    held = [(n, p) for n, p in model.named_parameters() if n in shapes]
    shrunk = any(tuple(p.shape) != shapes[n] or is_sharded(p) for n, p in held)
    on_meta = any(p.is_meta for p in model.parameters())
    for relaxed, mode in enumerate(_modes(model)):

        def accept(program: Program, deterministic: bool = bool(relaxed)) -> None:
            program.leaves(inputs)
            if check and not shrunk and not on_meta:
                check_capture(model, program, inputs, deterministic)

        try:
            with mode(), dense_stand_ins(model, shapes):
                return capture(model, dict(inputs), accept)
        except CaptureError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _modes(model: nn.Module) -> Iterator[Callable[[], Any]]:
    """The mode as it is; in training mode also with stacks of layers in evaluation mode (layer drop)."""
    yield contextlib.nullcontext
    if model.training:
        yield lambda: _stacks_in_eval(model)


@contextlib.contextmanager
def _stacks_in_eval(model: nn.Module) -> Iterator[None]:
    """Modules that own a list of layers choose layers at random while training; dropout stays as it is."""
    stacks = [
        m for m in model.modules() if any(isinstance(c, nn.ModuleList) for c in m.children()) and m.training
    ]
    for module in stacks:
        module.training = False
    try:
        yield
    finally:
        for module in stacks:
            module.training = True
