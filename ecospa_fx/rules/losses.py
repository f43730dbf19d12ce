"""Losses between two tensors, entry by entry: a mean counts the entries that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import both, broadcast, meet, reduce_arrays
from ecospa_fx.rules.registry import rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site

_MEAN, _SUM = 1, 2


def _dense_mean(site: Site) -> None:
    """A mean over fewer entries is larger by as much as there were more."""
    joint = site.layout_of(site.call.joins[-1].joint) if site.call.joins else None
    if joint is None or joint.shape == joint.dense or site.args.get("reduction", _MEAN) != _MEAN:
        return
    rest = {k: v for k, v in site.args.items() if k not in ("self", "target")}
    loss = site.emit(site.target, site.node("self"), site.node("target"), **rest)
    share = float(np.prod([n / m for n, m in zip(joint.shape, joint.dense, strict=True)]))
    site.result = site.emit(torch.ops.aten.mul.Tensor, loss, share)


@rule(
    "aten.mse_loss.default",
    "aten.l1_loss.default",
    "aten.smooth_l1_loss.default",
    "aten.huber_loss.default",
    rewrite=_dense_mean,
)
def difference(call: Call) -> Arrays:
    """A function of the difference that is zero at zero."""
    sizes, operands = broadcast(call, "self", "target")
    arrays = meet(call, sizes, operands, both)
    if call.get("reduction", _MEAN) in (_MEAN, _SUM):
        return reduce_arrays(call, arrays, set(range(len(sizes))))
    return arrays
