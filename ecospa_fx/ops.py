"""Operators that rewritten graphs call: reductions over a shrunk axis with dense statistics.

Each takes the dense size where it differs from the tensor's own, so that the removed entries count as
the zeros that they are in the masked model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean(x: Tensor, dim: list[int], keepdim: bool, dtype: torch.dtype | None, dense: int) -> Tensor:
    """Mean over ``dim`` as if it held ``dense`` entries, the missing ones zero."""
    return torch.sum(x, dim, keepdim=keepdim, dtype=dtype) / dense


def rms_norm(x: Tensor, axes: int, weight: Tensor | None, eps: float | None, dense: int) -> Tensor:
    """RMS norm over the last ``axes`` axes with ``dense`` entries (Zhang and Sennrich, 2019)."""
    dims = list(range(-axes, 0))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = torch.rsqrt(
        (wide * wide).sum(dims, keepdim=True) / dense + (torch.finfo(x.dtype).eps if eps is None else eps)
    )
    out = (wide * scale).to(x.dtype)
    return out if weight is None else out * weight


def layer_norm(
    x: Tensor, axes: int, weight: Tensor | None, bias: Tensor | None, eps: float, dense: int
) -> Tensor:
    """Layer norm over the last ``axes`` axes with ``dense`` entries (Ba et al., 2016)."""
    dims = list(range(-axes, 0))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    width = 1
    for d in dims:
        width *= x.shape[d]
    mu = wide.sum(dims, keepdim=True) / dense
    centred = wide - mu
    var = ((centred * centred).sum(dims, keepdim=True) + (dense - width) * mu * mu) / dense
    out = (centred * torch.rsqrt(var + eps)).to(x.dtype)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def var(x: Tensor, dim: list[int], correction: float, keepdim: bool, dense: int) -> Tensor:
    """Variance over ``dim`` as if it held ``dense`` entries, the missing ones zero."""
    width = 1
    for d in dim:
        width *= x.shape[d]
    mu = x.sum(dim, keepdim=True) / dense
    centred = x - mu
    total = (centred * centred).sum(dim, keepdim=True) + (dense - width) * mu * mu
    total = total / (dense - correction)
    return total if keepdim else total.squeeze(dim)


def spread(x: Tensor, axis: int, places: Tensor, width: int) -> Tensor:
    """Zeros of ``width`` along ``axis`` with the entries of ``x`` at ``places``."""
    shape = [width if a == axis else n for a, n in enumerate(x.shape)]
    return x.new_zeros(shape).index_copy(axis, places, x)


def grouped_mm(x: Tensor, w: Tensor, ends: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``out[t] = x[t] @ w[expert(t)]`` for any width, padded with zeros to what the kernel takes.

    Args:
        x: tokens in the order of their experts, shape ``[tokens, in]``.
        w: one matrix per expert, shape ``[experts, in, out]``.
        ends: where each expert's tokens end, shape ``[experts]``.
        dtype: of the result.
    """
    step, width = 16 // x.element_size(), w.shape[-1]
    more_in, more_out = -w.shape[-2] % step, -width % step
    x = torch.nn.functional.pad(x, (0, more_in))
    w = torch.nn.functional.pad(w, (0, more_out, 0, more_in))
    out: Tensor = torch.ops.aten._grouped_mm.default(x, w, ends, None, dtype)
    return out[:, :width]


def overwrite(self: Tensor, src: Tensor) -> Tensor:
    """``src`` in the shape and dtype of ``self``: ``aten.copy``, which has no derivative of its own."""
    return src.to(self.dtype).expand(self.shape)


def as_complex(self: Tensor) -> Tensor:
    """Pairs on the last axis as complex numbers, whatever strides the tensor has."""
    strides = self.stride()
    aligned = strides[-1] == 1 and not any(s % 2 for s in strides[:-1]) and self.storage_offset() % 2 == 0
    return torch.view_as_complex(self if aligned else self.contiguous())


STANDS_FOR: dict[object, torch._ops.OpOverload] = {
    overwrite: torch.ops.aten.copy.default,
    as_complex: torch.ops.aten.view_as_complex.default,
}
"""Functions that take the place of an operator, with the same arguments and the same rule."""
