"""Markers of routers: the rows of a router go with its experts, and what numbers experts keeps its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ecospa_fx.labels import Ids, LabelArray, Value
from ecospa_fx.routers import spread_logits
from ecospa_fx.rules.call import Arrays, Call, Join, unzeroed
from ecospa_fx.rules.registry import Rule

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site


def _note(call: Call) -> Ids:
    """Labels of the router's experts; the call changes with them, though no value of it has their axis."""
    number, experts = call.args["arg1"], call.args["arg2"]
    ids = call.space.experts(number, experts)
    call.joins.append(Join(Value((experts,), (False,), (LabelArray(ids),)), (), False))
    return ids


def _kept(site: Site) -> Ids:
    """Numbers of the experts that are left."""
    return site.layout_of(site.call.joins[-1].joint).at(0)


def _lost(site: Site) -> Ids:
    """Which experts are gone: bool, shape ``[experts]``."""
    lost = np.ones(site.call.args["arg2"], bool)
    lost[_kept(site)] = False
    return lost


def _passed(call: Call) -> Arrays:
    _note(call)
    return call.value("arg0").arrays


def _logits(call: Call) -> Arrays:
    """The last axis is that of the experts, and stops there: softmax and comparison see all of them."""
    x, ids = call.value("arg0"), _note(call)
    last = x.rank - 1
    call.pin((a for a in x.on(last) if a.axes != {last}), "experts of a router are not one axis")
    for array in x.on(last):
        call.space.union(array.ids.ravel(), ids)
    return unzeroed(a for a in x.arrays if last not in a.axes)


def _spread(site: Site) -> None:
    x, layout = site.node("arg0"), site.layout("arg0")
    if layout.changed(len(layout.dense) - 1):
        places = site.constant(_kept(site))
        site.result = site.emit(spread_logits, x, places, site.call.args["arg2"])
    else:
        _never(site)


def _never(site: Site) -> None:
    lost, parts = _lost(site), site.call.args.get("arg3", 1)
    shaped = lost.reshape(parts, -1) if parts > 1 else lost
    site.result = site.emit(
        torch.ops.aten.masked_fill.Scalar, site.node("arg0"), site.constant(shaped), -torch.inf
    )


def _renumbered(site: Site) -> None:
    """Experts that are gone are never picked; where they would be, stands the first one."""
    lost = _lost(site)
    table = np.where(lost, 0, np.cumsum(~lost) - 1)
    site.result = site.emit(torch.ops.aten.index.Tensor, site.constant(table), [site.node("arg0")])


def _ends(site: Site) -> None:
    """Runs of experts that are gone are empty."""
    site.result = site.emit(torch.index_select, site.node("arg0"), 0, site.constant(_kept(site)))


def _stored(call: Call) -> Arrays:
    """A buffer keeps its size; what belongs to entries that are gone stays as it was."""
    x = call.value("arg0")
    call.pin((a for a in x.arrays if len(a.axes) > 1 or len(x.arrays) > 1), "the model keeps it in a buffer")
    return ()


def _part(site: Site) -> None:
    layout, value, buffer = site.layout("arg0"), site.node("arg0"), site.node("arg1")
    changed = [axis for axis in range(len(layout.dense)) if layout.changed(axis)]
    site.result = value
    for axis in changed:
        places = site.constant(layout.at(axis).ravel())
        site.result = site.emit(torch.index_copy, buffer, axis, places, value)


MARKER_RULES = {
    "router_logits": Rule("router_logits", _logits, _spread),
    "electable": Rule("electable", _passed, _never),
    "renumbered": Rule("renumbered", _passed, _renumbered),
    "run_ends": Rule("run_ends", _passed, _ends),
    "stored": Rule("stored", _stored, _part),
}
"""Rules of markers, which no captured graph holds; they are proved with whole models."""
