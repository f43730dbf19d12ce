"""Shortcuts: graphs for calls whose masks hide nothing, or hide what comes later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ecospa_fx.linear import Linear


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A graph that computes the same as another one for some of its inputs.

    Attributes:
        graph: takes the same inputs.
        ones: which flat inputs have to hold nothing but ones.
        limits: what must not be more than 0.
        sizes: for every size in the limits the input and the axis to read it from.
    """

    graph: fx.Graph
    ones: tuple[int, ...]
    limits: frozenset[Linear]
    sizes: Mapping[str, tuple[int, int]]

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether this graph may run. It reads values, so not while something looks on."""
        sizes = {name: inputs[i].shape[axis] for name, (i, axis) in self.sizes.items()}
        return all(limit.value(sizes) <= 0 for limit in self.limits) and all(
            _all_ones(inputs[i]) for i in self.ones
        )


def _all_ones(tensor: Any) -> bool:
    if type(tensor) is not torch.Tensor or tensor.is_meta:
        return False
    return bool((tensor if tensor.dtype == torch.bool else tensor == 1).all())


def observed() -> bool:
    """Whether calls are being traced, transformed or recorded, so that no values may be read."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )
