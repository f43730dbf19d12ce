"""The dense skeleton: the original module with stand-ins of the dense shapes, for one more capture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


@contextlib.contextmanager
def dense_stand_ins(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Inside, every parameter has its dense shape again; its values are zeros and take no memory.

    Args:
        model: the module; afterwards it holds the very same parameters as before.
        shapes: dense shape of every parameter, by any of its names.
    """
    made: dict[int, nn.Parameter] = {}
    undo = []
    for path, module in model.named_modules():
        for leaf, p in module._parameters.items():
            name = f"{path}.{leaf}".lstrip(".")
            if p is not None and name in shapes and tuple(p.shape) != shapes[name]:
                if id(p) not in made:
                    made[id(p)] = _stand_in(p, shapes[name])
                undo.append((module, leaf, p))
                module._parameters[leaf] = made[id(p)]
    try:
        yield
    finally:
        for module, leaf, p in undo:
            module._parameters[leaf] = p


def _stand_in(p: nn.Parameter, shape: tuple[int, ...]) -> nn.Parameter:
    zero = torch.zeros((), dtype=p.dtype, device=p.device)
    return nn.Parameter(zero.expand(shape), requires_grad=p.requires_grad)
