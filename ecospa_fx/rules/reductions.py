"""Sums, means and norms: exact over a shrunk axis as long as its dead entries are zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx import ops
from ecospa_fx.errors import RewriteError
from ecospa_fx.labels import LabelArray, Tag
from ecospa_fx.rules.call import Arrays, Call, unzeroed
from ecospa_fx.rules.meet import both, broadcast, meet, reduce_arrays
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def axes_of(call: Call, name: str = "dim") -> list[int]:
    """The reduced axes, counted from the front; all of them where none is named."""
    rank = call.value("self").rank
    dims = call.get(name)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


def _reduce(call: Call) -> Arrays:
    return reduce_arrays(
        call, call.value("self").arrays, set(axes_of(call)), bool(call.get("keepdim", False))
    )


def _dense(site: Site, axes: Sequence[int]) -> int:
    """Number of dense entries reduced over; they must not be symbolic where they change."""
    value = site.call.value("self")
    if any(value.symbolic[a] for a in axes):
        raise RewriteError(f"{site.call.target}: a symbolic and a shrunk axis are reduced together")
    return int(np.prod([value.shape[a] for a in axes]))


def _share(site: Site, axes: Sequence[int], name: str = "self") -> float:
    """How much of the axes is left: what a mean over them is too large by."""
    layout = site.layout(name)
    return float(np.prod([layout.shape[a] / layout.dense[a] for a in axes]))


def _shrinks(site: Site, axes: Sequence[int]) -> bool:
    return any(site.layout("self").changed(a) for a in axes)


def _dense_mean(site: Site) -> None:
    axes = axes_of(site.call)
    if not _shrinks(site, axes):
        return
    keepdim, dtype = site.args.get("keepdim", False), site.args.get("dtype")
    if any(site.call.value("self").symbolic[a] for a in axes):
        mean = site.emit(torch.ops.aten.mean.dim, site.node("self"), axes, keepdim, dtype=dtype)
        site.result = site.emit(torch.ops.aten.mul.Tensor, mean, _share(site, axes))
    else:
        site.result = site.emit(ops.mean, site.node("self"), axes, keepdim, dtype, _dense(site, axes))


@rule("aten.mean.dim", "aten.mean.default", rewrite=_dense_mean)
def mean(call: Call) -> Arrays:
    """A sum, divided by the dense number of entries."""
    return _reduce(call)


@rule("aten.sum.dim_IntList", "aten.sum.default", "aten.nansum.default")
def total(call: Call) -> Arrays:
    """Dead entries add nothing."""
    return _reduce(call)


@rule(
    "aten.linalg_vector_norm.default",
    "aten.norm.ScalarOpt_dim",
    "aten.norm.Scalar",
    "aten.linalg_norm.default",
)
def vector_norm(call: Call) -> Arrays:
    """A p-norm with p > 0: dead entries add nothing."""
    order = call.get("ord", call.get("p", 2))
    if order is not None and not (isinstance(order, (int, float)) and order > 0):
        call.pin(call.value("self").arrays, "a norm that counts zeros")
        return ()
    return _reduce(call)


def _dense_var(site: Site) -> None:
    axes = axes_of(site.call)
    if _shrinks(site, axes):
        correction = site.args.get("correction", 1 if site.args.get("unbiased", True) else 0)
        correction = 1 if correction is None else correction
        keepdim = site.args.get("keepdim", False)
        site.result = site.emit(ops.var, site.node("self"), axes, correction, keepdim, _dense(site, axes))


def _dense_spread(site: Site) -> None:
    """A standard deviation, alone or with the mean; or a variance with the mean."""
    axes = axes_of(site.call)
    if not _shrinks(site, axes):
        return
    _dense_var(site)
    spread = site.result
    if "std" in site.call.target:
        spread = site.emit(torch.ops.aten.sqrt.default, spread)
    if "_mean" not in site.call.target:
        site.result = spread
        return
    keepdim = site.args.get("keepdim", False)
    site.result = (spread, site.emit(ops.mean, site.node("self"), axes, keepdim, None, _dense(site, axes)))


@rule(
    "aten.std.dim",
    "aten.std.correction",
    "aten.std_mean.dim",
    "aten.std_mean.correction",
    "aten.var_mean.dim",
    "aten.var_mean.correction",
    rewrite=_dense_spread,
)
def spread(call: Call) -> Arrays | list[Arrays]:
    """Dead entries are zeros among the others."""
    arrays = _reduce(call)
    return [arrays, arrays] if len(call.outputs) > 1 else arrays


@rule("aten.renorm.default")
def renorm(call: Call) -> Arrays:
    """Slices that are too long are scaled down; dead entries add nothing to their lengths."""
    x = call.value("self")
    zero = call.args["p"] > 0
    call.pin((a for a in x.arrays if not (zero and a.zero)), "normalised, but not zero where removed")
    return x.arrays


@rule("aten.dist.default")
def dist(call: Call) -> Arrays:
    """The norm of a difference."""
    sizes, operands = broadcast(call, "self", "other")
    arrays = meet(call, sizes, operands, both)
    if not call.get("p", 2) > 0:
        call.pin(arrays, "a norm that counts zeros")
    return reduce_arrays(call, arrays, set(range(len(sizes))))


@rule("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(call: Call) -> Arrays:
    """Dead entries do not count."""
    return _reduce(call)


@rule("aten.var.dim", "aten.var.correction", rewrite=_dense_var)
def variance(call: Call) -> Arrays:
    """Dead entries are zeros among the others."""
    return _reduce(call)


@rule(
    "aten.amax.default",
    "aten.amin.default",
    "aten.max.dim",
    "aten.min.dim",
    "aten.argmax.default",
    "aten.argmin.default",
    "aten.cumsum.default",
    "aten.cumprod.default",
    "aten.logsumexp.default",
    "aten.logcumsumexp.default",
    "aten.prod.dim_int",
    "aten.any.dim",
    "aten.all.dim",
    "aten.sort.default",
    "aten.argsort.default",
    "aten.argsort.stable",
    "aten.sort.stable",
    "aten.topk.default",
    "aten.median.dim",
    "aten.cummax.default",
    "aten.cummin.default",
    "aten.max.default",
    "aten.kthvalue.default",
    "aten.mode.default",
    "aten.nanmedian.dim",
    "aten.quantile.scalar",
    "aten.nanquantile.scalar",
    "aten.nanmean.default",
    "aten.min.default",
)
def ordered(call: Call) -> Arrays | list[Arrays]:
    """Every entry along the axis matters; other axes pass, and heads, say, go as a whole."""
    x = call.value("self")
    last = ("aten.topk", "aten.sort", "aten.argsort", "aten.kthvalue", "aten.mode")
    everywhere = call.get("dim") is None and not call.target.startswith(last)
    axes = (
        list(range(x.rank)) if everywhere else axes_of(call) if call.get("dim") is not None else [x.rank - 1]
    )
    one = call.out.rank != x.rank or all(call.out.shape[a] == 1 for a in axes)
    arrays = [_whole(call, a, axes) if one else a for a in x.arrays]
    call.pin((a for a in arrays if a.axes & set(axes)), "ordered, accumulated or compared along this axis")
    stays = call.target.split(".")[1] in _KEEP_ZERO
    kept = tuple(LabelArray(a.ids, a.zero and stays) for a in arrays if not a.axes & set(axes))
    if call.out.rank != x.rank:
        rest = [i for i in range(x.rank) if i not in axes]
        kept = tuple(LabelArray(a.ids.reshape([a.ids.shape[i] for i in rest]), a.zero) for a in kept)
    return [kept, *[unzeroed(kept)] * (len(call.outputs) - 1)] if len(call.outputs) > 1 else kept


_KEEP_ZERO = frozenset(
    {
        "amax",
        "amin",
        "max",
        "min",
        "cumsum",
        "cumprod",
        "prod",
        "sort",
        "topk",
        "median",
        "nanmedian",
        "cummax",
    }
    | {"cummin", "kthvalue", "mode", "quantile", "nanquantile", "nanmean"}
)
"""Zeros alone give zero."""


def _whole(call: Call, array: LabelArray, axes: Sequence[int]) -> LabelArray:
    """``array`` without ``axes``, where it lies along others too: what is compared there goes together."""
    along = array.axes & set(axes)
    if not along or along == array.axes:
        return array
    ids = array.ids
    for axis in along:
        ids = ids.take([0], axis)
    call.space.union(array.ids, ids)
    call.tag([array], Tag.NONLINEAR)  # Goodfellow et al. (2013): maxout
    return LabelArray(ids, array.zero)
