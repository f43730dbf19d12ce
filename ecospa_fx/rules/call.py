"""What a rule sees: one call of one operator, and what it may say about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ecospa_fx.labels import Ids, LabelArray, LabelSpace, Nature, Reason, Tag, Value

Arrays = tuple[LabelArray, ...]


@dataclass(frozen=True)
class Join:
    """Operands that meet index by index, over one common index space.

    Attributes:
        joint: the common space as a value: its sizes and all label arrays that meet there.
        operands: argument name and, for each of the operand's axes, the axis of ``joint``.
        gather: whether an operand that is no activation may be gathered to fit.
    """

    joint: Value
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    gather: bool


@dataclass(frozen=True)
class Pick:
    """The output takes entries of one operand along one axis.

    Attributes:
        operand: argument name.
        axis: axis of the operand, and of the output unless ``drop``.
        source: for each output index the operand's index, shape ``[n_out]``.
        drop: the axis is gone in the output (``select``, ``unbind``).
        output: which output, where an operator has several.
    """

    operand: str
    axis: int
    source: Ids
    drop: bool = False
    output: int = 0


@dataclass(eq=False)
class Call:
    """One call of an operator on label arrays.

    Attributes:
        target: the operator's name, such as ``aten.linear.default``.
        args: named arguments; a tensor stands as its :class:`Value`, a symbolic size as its hint.
        outputs: the outputs without labels: sizes and nature.
        space: where facts about labels go.
        node: the graph node's name.
        source: the user's own line.
        joins: operands that must line up after a removal (filled by the rule).
        picks: selections along an axis (filled by the rule).
        routed_by: the argument that picks matrices of a stack by number (filled by the rule).
    """

    target: str
    args: Mapping[str, Any]
    outputs: tuple[Value, ...]
    space: LabelSpace
    node: str = ""
    source: str = ""
    joins: list[Join] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    routed_by: str = ""

    @property
    def out(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def value(self, name: str) -> Value:
        """The tensor argument called ``name``."""
        value: Value = self.args[name]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The argument called ``name``, or ``default`` where it is absent."""
        return self.args.get(name, default)

    def axis(self, name: str = "dim", of: str = "self", default: int = 0) -> int:
        """The argument ``name`` as an axis of the tensor ``of``, counted from the front."""
        return int(self.get(name, default)) % max(self.value(of).rank, 1)

    def values(self) -> Iterable[Value]:
        """All tensor arguments, lists included."""
        for arg in self.args.values():
            yield from values_of(arg)

    def pin(self, arrays: Iterable[LabelArray], text: str) -> None:
        """Freeze the labels of ``arrays``."""
        for array in arrays:
            self.space.pin(array.ids, Reason(text, self.target, self.node, self.source))

    def refuse(self, text: str) -> Arrays:
        """Freeze the labels of all arguments; nothing comes out."""
        self.pin((a for v in self.values() for a in v.arrays), text)
        return ()

    def tag(self, arrays: Iterable[LabelArray], tag: Tag) -> None:
        """Note ``tag`` on the labels of ``arrays``."""
        for array in arrays:
            self.space.tag(array.ids, tag)

    def routed(self, value: Value, by: str) -> Value:
        """``value`` with the labels of its first matrix, which stand for whichever ``by`` picks.

        Experts that may go are numbered anew before, so that their axis may shrink.
        """
        stacks = self.space.stacks
        numbered = [a for a in value.on(0) if a.axes == {0} and self.space.are_experts(a.ids)]
        value = replace(value, arrays=tuple(a for a in value.arrays if a not in numbered))
        found = [a for a in value.arrays if len(a.axes) == 2 and 0 in a.axes and stacks.holds(a.ids)]
        if not found:
            return value
        self.routed_by = by
        for array in found:
            stacks.route(array.ids)
        first = tuple(LabelArray(a.ids.take([0], 0), a.zero) for a in found)
        return replace(value, arrays=(*(a for a in value.arrays if a not in found), *first))

    def slots(self, shape: Sequence[int], zero: bool) -> LabelArray:
        """Fresh labels for outer indices; they own no parameter entry."""
        return LabelArray(self.space.slots(shape), zero)


def values_of(found: Any) -> Iterator[Value]:
    """The tensors that an argument or a result is: one, several, or none."""
    for one in found if isinstance(found, (list, tuple)) else (found,):
        if isinstance(one, Value):
            yield one


def arrays_of(found: Any) -> Iterator[LabelArray]:
    """The label arrays of all of them."""
    return (array for value in values_of(found) for array in value.arrays)


def unzeroed(arrays: Iterable[LabelArray]) -> Arrays:
    """The same labels where dead entries need not be zero any more."""
    return tuple(LabelArray(a.ids, False) for a in arrays)


def lift(arrays: Iterable[LabelArray], rank: int, axes: Sequence[int]) -> Arrays:
    """Move label arrays into a space of ``rank`` axes; their axis ``i`` becomes ``axes[i]``."""
    return tuple(LabelArray(lift_ids(a.ids, rank, axes), a.zero) for a in arrays)


def lift_ids(ids: Ids, rank: int, axes: Sequence[int]) -> Ids:
    """:func:`lift` for one integer array."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    shape = [1] * rank
    for i in order:
        shape[axes[i]] = ids.shape[i]
    return ids if list(axes) == list(range(rank)) else ids.transpose(order).reshape(shape)


def nature_of(values: Iterable[Value]) -> Nature:
    """The nature of what is computed from ``values``: inputs and parameters together make an activation."""
    natures = {v.nature for v in values}
    mixed = {Nature.INDEX, Nature.WEIGHT} <= natures
    return Nature.ACTIVATION if mixed else max(natures, default=Nature.CONSTANT)


def item(args: Mapping[str, Any], name: str) -> Any:
    """An argument by name; ``tensors[2]`` names an item of a list."""
    base, _, index = name.partition("[")
    return args[base][int(index[:-1])] if index else args[base]
