"""Traced: what ``torch.export`` makes of a function of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.export import Dim, export

from ecospa_fx.passes.normalise import normalise


class Plain(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def exported(function: Callable[[Tensor], Any], x: Tensor, free: Sequence[int] = (0,)) -> fx.GraphModule:
    """The exported module of a function, or of a module whose input is called ``x``.

    Args:
        function: what is traced.
        x: the example.
        free: axes of it whose sizes stay symbolic.
    """
    model = function if isinstance(function, nn.Module) else Plain(function)
    sizes = {"x": dict.fromkeys(free, Dim.AUTO)}
    return export(model, (x.clone(),), dynamic_shapes=sizes).module(check_guards=False)


def graph_of(function: Callable[[Tensor], Any], x: Tensor, free: Sequence[int] = (0,)) -> fx.Graph:
    """The graph of :func:`exported` in normal form."""
    return normalise(exported(function, x, free))
