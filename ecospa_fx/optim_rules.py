"""Rules for optimizers whose state has shapes, or a meaning, of its own; importing this registers them.

None of the packages is imported: a rule goes by the dotted name of its class.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerStateError
from ecospa_fx.optim_state import register_optimizer_state


@register_optimizer_state(torch.optim.Adafactor, whole_state=True)
def _adafactor(
    key: str, value: torch.Tensor, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]
) -> Any:
    """``row_var [..., n, 1]`` and ``col_var [..., 1, m]``."""
    if key == "row_var":
        return _factor(value, state["col_var"], cut, axis=-1)
    if key == "col_var":
        return _factor(value, state["row_var"], cut, axis=-2)
    return NotImplemented


@register_optimizer_state("transformers.optimization.Adafactor", whole_state=True)
def _transformers_adafactor(
    key: str, value: torch.Tensor, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]
) -> Any:
    """``exp_avg_sq_row [..., n]`` and ``exp_avg_sq_col [..., m]``."""
    if key == "exp_avg_sq_row":
        return _factor(value.unsqueeze(-1), state["exp_avg_sq_col"].unsqueeze(-2), cut, axis=-1).squeeze(-1)
    if key == "exp_avg_sq_col":
        return _factor(value.unsqueeze(-2), state["exp_avg_sq_row"].unsqueeze(-1), cut, axis=-2).squeeze(-2)
    return NotImplemented


def _factor(mean: torch.Tensor, other: torch.Tensor, cut: ParameterCut, axis: int) -> torch.Tensor:
    """One factor of Adafactor's second moment, after the cut.

    Adafactor keeps the means ``r`` over columns and ``c`` over rows of the squared gradient and takes
    ``v[i, j] = r[i] c[j] / mean(r)`` from them (Shazeer and Stern 2018, algorithm 4). How much of a mean came
    from removed entries is not known. Each factor becomes the mean of ``v`` over the survivors, so ``v`` of
    every survivor is what it was. If the removed entries had zero gradients, this is the state that the
    smaller parameter would have had; else it is as good as the factoring itself.

    Args:
        mean: the factor, with size 1 along ``axis``, over which it is a mean.
        other: the other factor, which runs along ``axis``.
        cut: the parameter's cut.
        axis: -1 for the row factor, -2 for the column factor.
    """
    if not cut.is_product and cut.rows >= cut.kept.dim() - 2:  # each matrix is a row, with columns of its own
        whole = mean * other / mean.mean(-3 - axis, keepdim=True)
        return cut.apply(torch.where(whole.isfinite(), whole, 0)).mean(axis, keepdim=True)
    along, across = cut.collapse(axis), cut.collapse(-3 - axis)
    total = along.collapse(-3 - axis).apply(other.mean(axis, keepdim=True))
    share = across.apply(other).mean(axis, keepdim=True) / total
    return along.apply(mean) * torch.where(total > 0, share, torch.ones_like(share))


_BLOCK = 256
"""Entries that share a scale in all 8-bit optimizers of bitsandbytes."""


@register_optimizer_state("bitsandbytes.optim.optimizer.Optimizer8bit", whole_state=True)
def _bitsandbytes(
    key: str, value: Any, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]
) -> Any:
    """Codes ``state1`` of the parameter's shape, scales ``absmax1`` of 256 entries each, values ``qmap1``.

    Blocks run over rows, so a cut moves entries between them: values are decoded, cut and coded anew. A value
    whose block gets another scale changes by rounding, at most by half the distance of two codes. Two moments
    in one tensor (AdEMAMix) are cut one by one.
    """
    if key.startswith("qmap") or key in ("gnorm_vec", "unorm_vec"):
        return value
    number = key[-1]
    codes = state.get(f"state{number}")
    if key not in (f"state{number}", f"absmax{number}") or not isinstance(codes, torch.Tensor):
        return NotImplemented
    if tuple(codes.shape[codes.dim() - param.dim() :]) != tuple(param.shape):
        return NotImplemented
    if codes.dtype is not torch.uint8:
        return _slice_by_slice(value, cut)
    scales = state[f"absmax{number}"]
    small = _slice_by_slice(_decoded(codes, scales, state[f"qmap{number}"], param.dim()), cut)
    coded = _coded(small, state[f"qmap{number}"], param.dim(), scales)
    return coded[0] if key.startswith("state") else coded[1]


def _slice_by_slice(value: torch.Tensor, cut: ParameterCut) -> torch.Tensor:
    """Cut a tensor of the parameter's shape, or each of several stacked ones."""
    if value.dim() == cut.kept.dim():
        return cut.apply(value)
    return torch.stack([cut.apply(part) for part in value])


def _decoded(codes: torch.Tensor, scales: torch.Tensor, values: torch.Tensor, dim: int) -> torch.Tensor:
    """What 8-bit codes stand for: float32, of the codes' shape."""
    lead = codes.shape[: codes.dim() - dim]
    flat, scale = codes.reshape(*lead, -1), scales.reshape(*lead, -1)
    if scale.shape[-1] != -(-flat.shape[-1] // _BLOCK):
        raise OptimizerStateError(
            f"{flat.shape[-1]} codes have {scale.shape[-1]} scales, which are no blocks of {_BLOCK}"
        )
    wide = scale.repeat_interleave(_BLOCK, -1)[..., : flat.shape[-1]]
    return (values[flat.int()] * wide).reshape(codes.shape)


def _coded(
    wide: torch.Tensor, values: torch.Tensor, dim: int, like: torch.Tensor, block: int = _BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of :func:`_decoded`: the nearest code of each entry, and the scales of the blocks.

    A block gets the least scale that reaches all its entries. So a block that has not changed gets the codes
    that it had, though the greatest value of a code may be below one.
    """
    lead = wide.shape[: wide.dim() - dim]
    flat = wide.reshape(*lead, -1)
    size = flat.shape[-1]
    padded = torch.nn.functional.pad(flat, (0, -size % block)).reshape(*lead, -1, block)
    scales = padded.amax(-1) / values.max()
    if values.min() < 0:
        scales = torch.maximum(scales, padded.amin(-1) / values.min())
    shares = padded / torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    ordered, order = values.sort()
    codes = order[torch.bucketize(shares, (ordered[1:] + ordered[:-1]) / 2)]
    codes = codes.flatten(-2)[..., :size].reshape(wide.shape).to(torch.uint8)
    return codes, scales.to(like.dtype).reshape(*like.shape[: like.dim() - 1], -1)


@register_optimizer_state("torchao.optim.adam._AdamBase")
def _torchao(key: str, value: Any, param: torch.Tensor, cut: ParameterCut) -> Any:
    """Moments are tensors of a class of their own: decoded, cut and coded anew.

    Where the smaller parameter is no whole number of blocks, its moments become plain float tensors, as the
    optimizer itself begins such parameters.
    """
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != tuple(param.shape):
        return NotImplemented
    if not hasattr(value, "dequantize") or not hasattr(value, "block_size"):
        return cut.apply(value)
    small = cut.apply(value.dequantize())
    if small.numel() % value.block_size:
        return small.to(value.dtype)
    moments: Any = value
    signed = {"signed": moments.signed} if hasattr(moments, "signed") else {}
    new = type(moments).zeros(small.shape, block_size=moments.block_size, device=small.device, **signed)
    if not signed:
        return new.copy_(small)
    codes, scales = _coded(small, moments.qmap, small.dim(), moments.scale, moments.block_size)
    packed = codes.flatten()
    if new.codes.numel() < packed.numel():  # two codes of four bits in a byte
        packed = packed[::2] << 4 | packed[1::2]
    new.codes.copy_(packed.view_as(new.codes))
    new.scale.copy_(scales)
    return new


@register_optimizer_state("galore_torch.adamw.AdamW", whole_state=True)
def _galore(key: str, value: Any, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]) -> Any:
    """A projector onto ``rank`` directions of rows or of columns, and moments in them.

    The axis that is not projected is cut in the moments, the other one in the directions. That is what the
    masked model has until the projector is made anew; the directions are then those of the smaller gradient.
    """
    projector = state.get("projector")
    if projector is None:
        return cut.apply(value) if getattr(value, "shape", None) == param.shape else NotImplemented
    if key not in ("projector", "exp_avg", "exp_avg_sq"):
        return NotImplemented
    side = _side(projector.proj_type, cut.old_shape)
    if side != _side(projector.proj_type, cut.new_shape) or projector.rank > min(cut.new_shape):
        raise OptimizerStateError(
            f"its projector takes {projector.rank} directions from the {side} side of {cut.old_shape}, which "
            f"does not suit {cut.new_shape}. Take a smaller rank, a fixed proj_type ('left' or 'right'), or "
            "less from this parameter (limits)"
        )
    rows, columns = (cut.axis_kept(axis).to(param.device) for axis in (0, 1))
    if key != "projector":
        return value[rows] if side == "right" else value[:, columns] if side == "left" else value
    return _cut_projector(projector, side, rows, columns)


def _side(kind: str, shape: tuple[int, ...]) -> str:
    """Which side of a gradient is projected: that of the columns is ``"right"``."""
    tall = shape[0] >= shape[1]
    return {"std": "right" if tall else "left", "reverse_std": "left" if tall else "right"}.get(kind, kind)


def _cut_projector(projector: Any, side: str, rows: torch.Tensor, columns: torch.Tensor) -> Any:
    new, old = copy.copy(projector), projector.ortho_matrix
    if old is not None:
        both = [old[0][rows], old[1][:, columns]] if side == "full" else None
        new.ortho_matrix = both or (old[:, columns] if side == "right" else old[rows])
    return new
