"""The dense skeleton: the original module with stand-ins of the dense shapes, for one more capture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ecospa_fx.fsdp import compute_dtypes
from ecospa_fx.sharded import is_sharded


@contextlib.contextmanager
def dense_stand_ins(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Inside, every parameter has its dense shape again; its values are zeros and take no memory.

    Args:
        model: the module; afterwards it holds the very same parameters as before.
        shapes: dense shape of every parameter, by any of its names.
    """
    made: dict[int, nn.Parameter] = {}
    undo = []
    dtypes = compute_dtypes(model)
    for path, module in model.named_modules():
        table = {
            leaf: _dense(p, f"{path}.{leaf}".lstrip("."), shapes, made, dtypes)
            for leaf, p in module._parameters.items()
        }
        if any(p is not module._parameters[leaf] for leaf, p in table.items()):
            undo.append((module, module._parameters))
            module.__dict__["_parameters"] = table  # graphs that run meanwhile read the former dict
    try:
        yield
    finally:
        for module, former in undo:
            module.__dict__["_parameters"] = former


def _dense(
    p: nn.Parameter | None,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    made: dict[int, nn.Parameter],
    dtypes: Mapping[int, torch.dtype],
) -> nn.Parameter | None:
    if p is None or name not in shapes or (tuple(p.shape) == shapes[name] and not is_sharded(p)):
        return p
    if id(p) not in made:
        made[id(p)] = _stand_in(p, shapes[name], dtypes.get(id(p), p.dtype))
    return made[id(p)]


def _stand_in(p: nn.Parameter, shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    if len(shape) > 2 and dtype.itemsize == 2:  # grouped products look at strides
        return nn.Parameter(torch.zeros(shape, dtype=dtype, device=p.device), p.requires_grad)
    zero = torch.zeros(
        shape[-1:], dtype=dtype, device=p.device
    )  # pairs may be complex numbers: no stride of 0
    return nn.Parameter(zero.expand(shape), requires_grad=p.requires_grad)
