"""Told: which couples go by which field of a config, so that a plan keeps to what a config can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from ecospa_fx.config_fields import Change, Path
from ecospa_fx.coupling import Couple, CouplingGraph
from ecospa_fx.labels import Ids
from ecospa_fx.passes.plan import HEADED
from ecospa_fx.passes.say import Say

Axis = tuple[str, int]
Shapes = Mapping[str, tuple[int, ...]]
Moved = dict[Path, frozenset[Axis]]
_known: WeakKeyDictionary[nn.Module, Moved] = WeakKeyDictionary()


def told(graph: CouplingGraph, source: nn.Module, shapes: Shapes) -> tuple[CouplingGraph, list[str]]:
    """Bundle the couples that one field of the config speaks of.

    Each field is changed, and the class built on the meta device: the axes that change are its own. A couple
    whose width is a multiple of another's under the same field (shared experts) gets a segment for each time,
    so that the multiple stays. Couples of heads are left alone: of them only whole heads go.

    Args:
        graph: the couples.
        source: a model with a config.
        shapes: dense shape of every parameter.

    Returns:
        The graph with bundles over layers, and the names of the couples of whose width no field speaks.
    """
    if source not in _known:
        _known[source] = _moved(source, shapes)
    fields = _fields(graph, _known[source])
    spoken = [i for i, c in enumerate(graph.couples) if fields[i] and c.kind not in HEADED]
    names = [c.name for i, c in enumerate(graph.couples) if not fields[i] and c.kind not in HEADED]
    for group in _groups([fields[i] for i in spoken]):
        graph = _bundled(graph, [graph.couples[spoken[i]] for i in group])
    return graph, names


def _moved(source: Any, shapes: Shapes) -> Moved:
    """The axes that go with each field, for fields on which parameters depend."""
    said = Say(source, shapes)
    fields = {**said.fields, **said.pins()}
    found = {path: _axes(said, shapes, {path: 2 * value}) for path, value in fields.items()}
    return {path: axes for path, axes in found.items() if axes}


def _axes(said: Say, shapes: Shapes, change: Change) -> frozenset[Axis]:
    """Axes of parameters that a change of the config makes longer or shorter."""
    try:
        model = said.built(change)
    except Exception:  # whatever a class says of a config that it does not take
        return frozenset()
    pairs = ((name, shapes[name], tuple(p.shape)) for name, p in model.named_parameters() if name in shapes)
    return frozenset(
        (name, axis)
        for name, old, new in pairs
        for axis, (n, m) in enumerate(zip(old, new, strict=False))
        if n != m or len(old) != len(new)
    )


def _fields(graph: CouplingGraph, moved: Moved) -> list[set[Path]]:
    """For each couple the fields that speak of all its axes, and of no axis without such a couple.

    Several couples may share an axis (low-rank keys beside rotated ones), of which a field speaks of one.
    """
    held = {(a.parameter, a.axis): set(np.unique(graph.couple_of[a.components]).tolist()) for a in graph.axes}
    free = {i for i, c in enumerate(graph.couples) if c.kind not in HEADED}
    found: list[set[Path]] = [set() for _ in graph.couples]
    for path, axes in moved.items():
        still = set().union(*(couples for axis, couples in held.items() if axis not in axes))
        spoken = {c for axis in axes for c in held.get(axis, ())} & free - still
        if all(spoken & held.get(axis, set()) for axis in axes):
            for couple in spoken:
                found[couple].add(path)
    return found


def _groups(fields: list[set[Path]]) -> list[Ids]:
    """Couples that share a field, directly or by way of others."""
    every = sorted({path for paths in fields for path in paths}, key=str)
    place = {path: i for i, path in enumerate(every)}
    pairs = [(i, place[path]) for i, paths in enumerate(fields) for path in paths]
    if not pairs:
        return []
    rows, columns = np.array(pairs).T
    size = len(fields) + len(every)
    links = coo_array((np.ones(len(rows)), (rows, columns + len(fields))), shape=(size, size))
    labels = connected_components(links, directed=False)[1][: len(fields)]
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _bundled(graph: CouplingGraph, couples: list[Couple]) -> CouplingGraph:
    """One bundle for some couples, with segments of one size."""
    segment_of, bundle_of = graph.segment_of.copy(), graph.bundle_of.copy()
    units = np.concatenate([c.units for c in couples])
    segments, counts = np.unique(segment_of[units], return_counts=True)
    size, bundle = int(np.gcd.reduce(counts)), bundle_of[segments[0]]
    bundle_of[segments] = bundle
    for segment, times in zip(segments, counts // size, strict=True):
        places = np.flatnonzero(segment_of == segment)
        turn = np.arange(len(places)) % times
        segment_of[places[turn > 0]] = len(bundle_of) + turn[turn > 0] - 1
        bundle_of = np.append(bundle_of, np.full(times - 1, bundle))
    return replace(graph, segment_of=segment_of, bundle_of=bundle_of)
