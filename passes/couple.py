"""Couple: from labels to units, couples, and the counts that must stay equal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ecospa_fx.arrays import distinct
from ecospa_fx.coupling import (
    Couple,
    CouplingGraph,
    Frozen,
    Member,
    ParameterAxis,
    common_path,
    numbered,
)
from ecospa_fx.labels import Ids, Partition, Reason, Tag
from ecospa_fx.passes.boxes import Rows, rows_of
from ecospa_fx.passes.experts import least_of, parts_of
from ecospa_fx.passes.roles import attention_roles
from ecospa_fx.passes.streams import residual_components
from ecospa_fx.program import Analysis

_KINDS = (
    (Tag.EXPERT, "expert"),
    (Tag.RESIDUAL, "residual"),
    (Tag.DOT, "qk"),
    (Tag.VALUE, "vo"),
    (Tag.CONV, "conv"),
    (Tag.HEAD, "head"),
    (Tag.NONLINEAR, "ffn"),
)


def couple(analysis: Analysis) -> tuple[CouplingGraph, Analysis]:
    """Find the couples.

    Where rows of a joint label array could not keep equal counts (a fused projection seen through an
    axis of its own), their labels are tied until they can; the analysis returned carries those ties.

    Args:
        analysis: labels of every node.

    Returns:
        The coupling graph, and the analysis that it holds for.
    """
    for _ in range(8):
        builder = _Builder(analysis)
        ties = builder.ties()
        if not ties:
            break
        analysis = analysis.tied(ties)
    return builder.build(), analysis


def _hashes(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(1, 1 << 62, count, dtype=np.int64)


class _Builder:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.partition: Partition = analysis.partition
        self.rng = np.random.default_rng(0)
        self.axes = tuple(self._axes())
        self.owned = [_distinct(axis.components) for axis in self.axes]
        self.tags = self._tags()
        self.units = self._units()
        owners = self._owners()
        self.slot = self._slots(owners)
        self.group = self._numbered(owners, self.slot)
        self.parts = list(parts_of(analysis))
        self.rows = list(rows_of(analysis))
        self.profile = self._profiles()
        self.segment = self._segments()
        self.held = [self._held(rows) for rows in self.rows]
        places = self._places()
        if places.any():
            self.group = self._numbered(self.group, places)
            self.segment = self._segments()
            self.held = [self._held(rows) for rows in self.rows]

    def _axes(self) -> Iterator[ParameterAxis]:
        """Every labelled parameter axis; an axis summed over anywhere is an input axis."""
        for name, axes in self.analysis.labels.items():
            for axis, ids in enumerate(axes):
                if ids is not None:
                    role = "in" if self.partition.label_tags[ids.flat[0]] & Tag.CONTRACTED else "out"
                    components = self.partition.component[ids.ravel()]
                    rows = len(ids) if ids.ndim > 1 else 1
                    stack = self.analysis.stacked[name] if rows > 1 else None
                    weight = len(axes) > (2 if stack else 1)
                    yield ParameterAxis(name, axis, components, role, weight, rows, stack)

    def _tags(self) -> Ids:
        tags = self.partition.tags.copy()
        tags[residual_components(self.analysis)] |= int(Tag.RESIDUAL)
        scores, values = attention_roles(self.analysis)
        tags[scores] |= int(Tag.DOT)
        tags[values] |= int(Tag.VALUE)
        return tags

    def _units(self) -> Ids:
        """Free components that multiply with something, and are not made of finer ones."""
        owners = np.zeros(self.partition.num_components, np.int64)
        for axis, owned in zip(self.axes, self.owned, strict=True):
            if axis.weight:
                owners[owned] += 1
        # Queries and keys may come from one fused weight, and one weight may lead both up and down.
        alone = (self.tags & int(Tag.DOT | Tag.CONTRACTED)) > 0
        units = (self.partition.pin < 0) & ((owners > 1) | alone & (owners > 0))
        units[self.partition.coarse] = False
        experts = self.partition.chosen & (self.partition.pin < 0) & (owners > 0)
        return np.asarray(units | experts)

    def _owners(self) -> Ids:
        """A number for each unit: units of one kind with the same owners share it."""
        signature = np.zeros(self.partition.num_components, np.int64)
        for owned, salt in zip(self.owned, _hashes(self.rng, len(self.axes)), strict=True):
            signature[owned] += salt
        kinds = self.tags & int(Tag.RESIDUAL | Tag.DOT | Tag.VALUE | Tag.CONV | Tag.NONLINEAR)
        return self._numbered(signature, kinds)

    def _slots(self, owners: Ids) -> Ids:
        """The head of each unit: the outer index that it shares with the fewest units of its owners."""
        slot = np.full(self.partition.num_components, -1)
        coarse, fine = self.partition.coarse, self.partition.fine
        keep = self.units[fine] & ((self.partition.tags[coarse] & Tag.SLOT) > 0)
        coarse, fine = coarse[keep], fine[keep]
        cells = coarse * (int(owners.max(initial=0)) + 1) + owners[fine]
        _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
        size = counts[cell]
        order = np.argsort(-size, kind="stable")
        order = order[size[order] > 1]
        slot[fine[order]] = coarse[order]
        return slot

    def _numbered(self, *keys: Ids) -> Ids:
        """Number the distinct combinations of keys over units; -1 elsewhere."""
        number = np.full(self.partition.num_components, -1)
        salts = _hashes(np.random.default_rng(len(keys)), len(keys)) | 1
        mixed = np.zeros(int(self.units.sum()), np.int64)
        for key, salt in zip(keys, salts, strict=True):
            mixed = (
                mixed * 31 + key[self.units] * salt
            )  # wraps around: a hash, and sorting one column is fast
        number[self.units] = np.unique(mixed, return_inverse=True)[1]
        return number

    def _profiles(self) -> Ids:
        """A hash of the joint arrays in which each component stands, and how often."""
        profile = np.zeros(self.partition.num_components, np.int64)
        for rows, salt in zip(self.rows, _hashes(self.rng, len(self.rows)), strict=True):
            np.add.at(profile, rows.components.ravel(), salt)
        return profile

    def _segments(self) -> Ids:
        return self._numbered(self.group, self.profile, *self.parts)

    def _places(self) -> Ids:
        """A hash of the rows of a unit, where rows of a joint array split segments evenly."""
        places = np.zeros(self.partition.num_components, np.int64)
        for rows, (row, unit, held, whole) in zip(self.rows, self.held, strict=True):
            if len(held) and (held < whole).any() and held.min() > 1 and (whole % held == 0).all():
                np.add.at(places, unit, _hashes(self.rng, len(rows.components))[row])
        return places

    def ties(self) -> list[tuple[Ids, Ids]]:
        """Label pairs to unite so that every joint array can stay a box."""
        found = []
        kinds = self._profile_salts()
        for rows, (_, _, held, whole) in zip(self.rows, self.held, strict=True):
            if not len(held):
                continue
            marks = kinds[rows.components].sum(1)
            if (marks != marks[0]).any():
                found.append((rows.ids, np.broadcast_to(rows.ids[:1], rows.ids.shape)))
            elif (held != whole).any() and (rows.components != rows.components[:, :1]).any():
                # some row holds only a part of a segment
                found.append((rows.ids, np.broadcast_to(rows.ids[:, :1], rows.ids.shape)))
        return found

    def _profile_salts(self) -> Ids:
        """Equal numbers for interchangeable units, whatever their head; 1 for what never goes."""
        number = self._numbered(self.profile)
        salts = np.concatenate([_hashes(self.rng, int(number.max(initial=0)) + 1), [1]])
        return np.asarray(salts[number])

    def _held(self, rows: Rows) -> tuple[Ids, Ids, Ids, Ids]:
        """Rows and units that meet, how many units of its segment the row holds, and how many there are."""
        count = len(rows.components)
        number = np.arange(count)[:, None] * self.partition.num_components
        pairs = distinct((rows.components + number)[self.units[rows.components]])
        row, unit = np.divmod(pairs, self.partition.num_components)
        sizes = np.bincount(self.segment[self.units], minlength=1)
        _, cell, held = np.unique(
            row * len(sizes) + self.segment[unit], return_inverse=True, return_counts=True
        )
        return row, unit, held[cell], sizes[self.segment[unit]]

    def build(self) -> CouplingGraph:
        """The coupling graph; couples stand in the order of their first parameter entry."""
        units = np.flatnonzero(self.units)
        units = units[np.argsort(self._first_seen()[units], kind="stable")]
        groups, first = np.unique(self.group[units], return_index=True)
        order = groups[np.argsort(first, kind="stable")]
        rank = np.full(len(groups) + 1, -1)
        rank[order] = np.arange(len(order))
        couple_of = rank[self.group]
        members = self._members(couple_of, len(order))
        split = (
            np.split(
                units[np.argsort(couple_of[units], kind="stable")],
                np.cumsum(np.bincount(couple_of[units]))[:-1],
            )
            if len(units)
            else []
        )
        couples = numbered([self._couple(m, u) for m, u in zip(members, split, strict=True)])
        shapes = dict(self.analysis.program.parameters)
        return CouplingGraph(
            tuple(couples), tuple(self._frozen()), self.axes, shapes, couple_of, self.segment,
            self._bundles(),
            least_of(self.analysis, self.units, self.segment),
        )  # fmt: skip

    def _first_seen(self) -> Ids:
        first = np.full(self.partition.num_components, np.iinfo(np.int64).max)
        position = 0
        for axis in self.axes:
            np.minimum.at(first, axis.components, position + np.arange(len(axis.components)))
            position += len(axis.components)
        return first

    def _members(self, couple_of: Ids, count: int) -> list[list[Member]]:
        members: list[list[Member]] = [[] for _ in range(count)]
        for axis, owned in zip(self.axes, self.owned, strict=True):
            if axis.weight:
                for number in np.flatnonzero(np.bincount(couple_of[owned] + 1)) - 1:
                    if number >= 0:
                        members[number].append(Member(axis.parameter, axis.axis, axis.role))
        return members

    def _couple(self, members: list[Member], units: Ids) -> Couple:
        kind = _kind(int(self.tags[units[0]]))
        slot = int(self.slot[units[0]])
        return Couple(
            f"{common_path([m.parameter for m in members])}.{kind}".lstrip("."),
            kind,
            tuple(members),
            units,
            None,
            slot,
        )

    def _bundles(self) -> Ids:
        """Segments with the same place in the same joint arrays; without a joint array each is alone."""
        count = int(self.segment.max(initial=-1)) + 1
        profile, own = np.zeros(count, np.int64), np.arange(count)
        profile[self.segment[self.units]] = self.profile[self.units]
        key = np.stack([profile, np.where(profile == 0, own, -1)], 1)
        return np.unique(key, axis=0, return_inverse=True)[1].ravel() if count else own

    def _frozen(self) -> Iterator[Frozen]:
        outer = np.zeros(self.partition.num_components, bool)
        outer[self.partition.coarse] = True
        for axis in self.axes:
            stuck = axis.components[~self.units[axis.components]]
            stuck = stuck[~outer[stuck] | (self.partition.pin[stuck] >= 0)]
            if len(stuck):
                pins = self.partition.pin[stuck]
                worst = int(np.bincount(pins[pins >= 0]).argmax()) if (pins >= 0).any() else -1
                reason = (
                    self.partition.reasons[worst] if worst >= 0 else Reason("no second weight depends on it")
                )
                kind = _kind(int(np.bitwise_and.reduce(self.tags[stuck])))
                yield Frozen(axis.parameter, axis.axis, len(stuck), len(axis.components), reason, kind)


def _kind(tags: int) -> str:
    return next((kind for tag, kind in _KINDS if tags & tag), "lowrank")


def _distinct(components: Ids) -> Ids:
    """Distinct components; those of most axes come in ascending order and need no sorting."""
    return components if (np.diff(components) > 0).all() else distinct(components)
