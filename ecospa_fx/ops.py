"""Operators that rewritten graphs call: reductions over a shrunk axis with dense statistics.

Each takes the dense size where it differs from the tensor's own, so that the removed entries count as
the zeros that they are in the masked model.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ecospa_fx.errors import InputError


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


def stored(x: Tensor, buffer: Tensor) -> Tensor:
    """Marks what the model writes into one of its buffers, such as running statistics."""
    return x


@fx.node.has_side_effect
def held(condition: bool, source: str) -> None:
    """Goes on only where a value that Python has read at the capture is what it was then.

    Args:
        condition: what the capture relied on.
        source: the user's line that reads the value.

    Raises:
        InputError: the condition does not hold, so the model would do something else than the graph.
    """
    message = (
        "this call is not like the one that was captured: the model reads values into Python "
        f"and goes another way\n  at {source}\n  compile the model anew with inputs like these, or give "
        "forward a branch that torch.where can take"
    )
    if torch.compiler.is_compiling():
        torch._check(condition, lambda: message)  # type: ignore[no-untyped-call]
    elif not condition:
        raise InputError(message)


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


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` by way of the fastest kernel that takes these widths.

    Fused kernels want queries, keys and values of one width: the narrower ones get zeros. A single query of
    each head goes together with those of its group.
    """
    width, one = value.shape[-1], query.shape[-2] == 1 and not is_causal and not dropout_p
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if one and groups > 1 and (attn_mask is not None or query.shape[-1] != width):
        return _packed(query, key, value, attn_mask, scale, groups)
    if query.shape[-1] != width and not one:
        query, key, value = _equally_wide(query, key, value)
    fused = groups > 1 and attn_mask is None and query.shape[-1] == value.shape[-1] <= _WIDEST
    if groups > 1 and not fused:
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=fused
    )
    return out if out.shape[-1] == width else out[..., :width]


_WIDEST = 256  # of heads that kernels of CUDA take without copying


def _packed(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, groups: int
) -> Tensor:
    """Single queries of a group as the rows of one product with their key head."""
    *batch, heads, _, width = query.shape
    if mask is not None and mask.dim() > 2 and mask.shape[-3] != 1:
        mask = mask.expand(*batch, heads, 1, mask.shape[-1])
        mask = mask.reshape(*batch, heads // groups, groups, mask.shape[-1])
    rows = query.reshape(*batch, heads // groups, groups, width)
    out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, mask, scale=scale)
    return out.reshape(*batch, heads, 1, value.shape[-1])


def _equally_wide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With zeros, which change no score and no sum."""
    more = query.shape[-1] - value.shape[-1]
    if more > 0:
        return query, key, torch.nn.functional.pad(value, (0, more))
    pad = (0, -more)
    return torch.nn.functional.pad(query, pad), torch.nn.functional.pad(key, pad), value


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
