"""Tiny graphs: a function of an input and a few named weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ecospa_fx.passes.capture import capture
from ecospa_fx.program import Program

Function = Callable[[Any, Tensor], Any]
X = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Tiny(nn.Module):
    """Parameters of given shapes, and a function of them.

    Args:
        function: from the module and its input to the output.
        shapes: of the parameters, by name.
    """

    def __init__(self, function: Function, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def program(function: Function, **shapes: tuple[int, ...]) -> Program:
    """The captured program of a tiny model."""
    return capture(Tiny(function, **shapes), {"x": X})
