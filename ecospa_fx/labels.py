"""Labels: an integer for every index of every parameter axis, and what the graph says about them.

A *label array* is an integer array that broadcasts against a value of the graph; size 1 on an axis
means that the axis carries no label. An entry of the value is *dead* once any of its labels is.
Ops add facts to a :class:`LabelSpace`: two labels die together (*union*), one may only die after
others have (*implication*), one must stay (*pin*). :meth:`LabelSpace.resolve` turns the facts into a
:class:`Partition`, once and without a loop over indices.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ecospa_fx.arrays import distinct
from ecospa_fx.components import components, condense, held_experts, taken_along
from ecospa_fx.stacks import Stacks

Ids = np.ndarray


class Tag(enum.IntFlag):
    """What happens to a label on its way through the graph; the kind of a couple follows from it."""

    NONE = 0
    DOT = 1  # contracted between two activations: queries with keys
    VALUE = 2  # carried by an activation that another activation mixes: attention values
    NONLINEAR = 4  # passes an activation function or a product of two activations
    CONTRACTED = 8  # this very label is summed over by a parameter (role "in")
    SLOT = 16  # an outer index made by a split: a head or a group, not a parameter index
    RESIDUAL = 32  # leaves its stream and is added to it again
    NORM = 64  # normalised over its own axis
    CONV = 128  # moves through a convolution
    HEAD = 256  # shared by two activations that are multiplied, and not summed over: a head as a whole
    EXPERT = 512  # a whole expert, which goes by choice only, and takes its hidden units along


class Nature(enum.IntEnum):
    """What a value depends on. Lookups and activations cannot be gathered at use."""

    CONSTANT = 0  # buffers and sizes
    INDEX = 1  # integer inputs: tokens, positions, masks
    WEIGHT = 2  # parameters
    LOOKUP = 3  # matrices of parameters that the input picks by number: experts
    ACTIVATION = 4  # floating-point inputs, and what mixes inputs with parameters


@dataclass(frozen=True, eq=False)
class LabelArray:
    """One label array of a value.

    Attributes:
        ids: integers of the value's rank; size 1 on every axis without a label.
        zero: whether dead entries are exactly zero in the masked model (a sum over them is free).
    """

    ids: Ids
    zero: bool = True

    @cached_property
    def axes(self) -> frozenset[int]:
        """The axes that carry labels."""
        return frozenset(a for a, n in enumerate(self.ids.shape) if n > 1)


@dataclass(frozen=True, eq=False)
class Value:
    """What the interpreter knows of one tensor: sizes, labels and nature.

    Attributes:
        shape: sizes; a symbolic size stands as its hint.
        symbolic: for each axis whether its size is symbolic.
        arrays: the label arrays, at most one per set of axes.
        nature: what the value depends on.
    """

    shape: tuple[int, ...]
    symbolic: tuple[bool, ...]
    arrays: tuple[LabelArray, ...] = ()
    nature: Nature = Nature.CONSTANT

    def on(self, axis: int) -> tuple[LabelArray, ...]:
        """The label arrays that cover ``axis``."""
        return tuple(a for a in self.arrays if a.ids.shape[axis] > 1)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def inner(self, array: LabelArray) -> int:
        """The axis along which a joint array selects, row by row; other arrays cover the axes outside it."""
        return max(array.axes - outer_axes(array, self.arrays), default=max(array.axes))


def outer_axes(array: LabelArray, arrays: Iterable[LabelArray]) -> set[int]:
    """Axes of ``array`` that coarser arrays (heads, for instance) cover as well."""
    return {axis for other in arrays if other.axes < array.axes for axis in other.axes}


@dataclass(frozen=True)
class Reason:
    """Why labels are frozen.

    Attributes:
        text: the reason in words.
        op: name of the operator that froze them.
        node: name of the graph node.
        source: the user's own line, ``file:line: code``, where known.
    """

    text: str
    op: str = ""
    node: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = f" [{self.op}]" if self.op else ""
        return f"{self.text}{where}" + (f" at {self.source}" if self.source else "")


@dataclass(frozen=True, eq=False)
class Partition:
    """Components of labels under "die together".

    Attributes:
        component: component of each label, shape ``[labels]``.
        pin: index into ``reasons`` for a frozen component, else -1, shape ``[components]``.
        tags: bit set of :class:`Tag` of each component, shape ``[components]``.
        label_tags: bit set of each label itself, shape ``[labels]``.
        coarse: left sides of the implications between components ("dies only after").
        fine: right sides; a coarse component may die once all its fine ones have.
        reasons: the reasons that ``pin`` refers to.
    """

    component: Ids
    pin: Ids
    tags: Ids
    label_tags: Ids
    coarse: Ids
    fine: Ids
    reasons: tuple[Reason, ...]

    @property
    def num_components(self) -> int:
        """Number of components."""
        return len(self.pin)

    def close(self, dead: Ids) -> Ids:
        """Add what experts take along, and the coarse components whose fine ones are all dead.

        Args:
            dead: bool, shape ``[components]``.

        Returns:
            A new bool array of the same shape.
        """
        dead = taken_along(dead, self.chosen, self.coarse, self.fine)
        coarse = np.zeros(self.num_components, bool)
        coarse[self.coarse] = True
        parents = np.flatnonzero(coarse & (self.pin < 0) & ~self.chosen)
        while len(parents):
            held = np.zeros(self.num_components, bool)
            held[self.coarse[~dead[self.fine]]] = True
            fresh = parents[~held[parents] & ~dead[parents]]
            if not len(fresh):
                break
            dead[fresh] = True
        return dead

    @property
    def chosen(self) -> Ids:
        """Components that go by choice, and never because all that is under them has gone: whole experts."""
        return (self.tags & int(Tag.EXPERT)) > 0


@dataclass(eq=False)
class LabelSpace:
    """Collects facts about labels while the graph is interpreted."""

    size: int = 0
    reasons: list[Reason] = field(default_factory=list)
    stacks: Stacks = field(default_factory=Stacks)
    _left: list[Ids] = field(default_factory=list)
    _right: list[Ids] = field(default_factory=list)
    _coarse: list[Ids] = field(default_factory=list)
    _fine: list[Ids] = field(default_factory=list)
    _pins: list[tuple[Ids, int]] = field(default_factory=list)
    _tags: list[tuple[Ids, Tag]] = field(default_factory=list)
    _slots: list[tuple[int, int]] = field(default_factory=list)
    _experts: dict[int, Ids] = field(default_factory=dict)

    def fresh(self, shape: Sequence[int]) -> Ids:
        """New labels in an array of ``shape``."""
        count = int(np.prod(shape))
        ids = np.arange(self.size, self.size + count).reshape(shape)
        self.size += count
        return ids

    def slots(self, shape: Sequence[int]) -> Ids:
        """New labels for outer indices, which own no parameter entry."""
        ids = self.fresh(shape)
        if ids.size:
            self._slots.append((int(ids.flat[0]), self.size))
            self.tag(ids, Tag.SLOT)
        return ids

    def experts(self, router: int, count: int) -> Ids:
        """Labels of the experts of a router, made when they are first asked for."""
        if router not in self._experts:
            self._experts[router] = self.slots((count,))
            self.tag(self._experts[router], Tag.EXPERT)
        return self._experts[router]

    def are_experts(self, ids: Ids) -> bool:
        """Whether labels were made by :meth:`experts`."""
        first = int(ids.flat[0])
        return any(known[0] <= first <= known[-1] for known in self._experts.values())

    def stack(self, rows: int, width: int) -> Ids:
        """New labels for the matrices of a stack, each of which chooses for itself: ``[rows, width]``."""
        ids = self.fresh((rows, width))
        self.stacks.add(int(ids.flat[0]), rows, width)
        return ids

    def agree(self, ids: Ids) -> None:
        """All rows of a stack that ``ids`` stand for lose the same indices."""
        one, rest = self.stacks.columns(distinct(ids))
        if len(one):
            self.union(one, rest)

    def is_slot(self, ids: Ids) -> bool:
        """Whether labels were made by :meth:`slots`, told by the first of them."""
        at = bisect_right(self._slots, (int(ids.flat[0]), self.size + 1)) - 1
        return at >= 0 and int(ids.flat[0]) < self._slots[at][1]

    def union(self, a: Ids, b: Ids) -> None:
        """Labels at the same place, after broadcasting, die together."""
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    def extend(self, pairs: Iterable[tuple[Ids, Ids]]) -> None:
        """Add unions without touching a copy that shares the earlier ones."""
        self._left, self._right = list(self._left), list(self._right)
        for a, b in pairs:
            self.union(a, b)

    def imply(self, coarse: Ids, fine: Ids) -> None:
        """A label of ``coarse`` dies only after the labels of ``fine`` at its place have."""
        coarse, fine = np.broadcast_arrays(coarse, fine)
        self._coarse.append(coarse.ravel())
        self._fine.append(fine.ravel())

    def pin(self, ids: Ids, reason: Reason) -> None:
        """The labels must stay."""
        if not self.reasons or self.reasons[-1] != reason:
            self.reasons.append(reason)
        self._pins.append((ids.ravel(), len(self.reasons) - 1))

    def tag(self, ids: Ids, tag: Tag) -> None:
        """Note what happens to the labels."""
        self._tags.append((ids.ravel(), tag))

    def resolve(self) -> Partition:
        """Connected components of all unions; a cycle of implications is one component too."""
        none = np.zeros(0, np.int64)
        left, right = np.concatenate([none, *self._left]), np.concatenate([none, *self._right])
        pinned = self.stacks.columns(distinct(np.concatenate([none, *(ids for ids, _ in self._pins)])))
        left, right = self.stacks.mirrored(left, right)
        left, right = np.concatenate([left, pinned[0]]), np.concatenate([right, pinned[1]])
        coarse, fine = np.concatenate([none, *self._coarse]), np.concatenate([none, *self._fine])
        component = components(self.size, left, right)
        component, coarse, fine = condense(component, coarse, fine)
        count = int(component.max()) + 1 if self.size else 0
        label_tags = np.zeros(self.size, np.int64)
        for ids, tag in self._tags:
            label_tags[ids] |= int(tag)
        one, rest = self.stacks.columns(np.flatnonzero(label_tags))
        label_tags[rest] |= label_tags[one]
        tags = np.zeros(count, np.int64)
        np.bitwise_or.at(tags, component, label_tags)
        pin = np.full(count, -1)
        for ids, reason in reversed(self._pins):  # the first reason given stays
            pin[component[ids]] = reason
        pin = held_experts(pin, (tags & int(Tag.EXPERT)) > 0, coarse, fine)
        return Partition(component, pin, tags, label_tags, coarse, fine, tuple(self.reasons))
