"""How label arrays meet: entry by entry (:func:`meet`), and in sums of products (:func:`contract`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ecospa_fx.labels import LabelArray, Nature, Tag, Value, outer_axes
from ecospa_fx.rules.call import Arrays, Call, Join, lift, nature_of

Operand = tuple[str, Value, tuple[int, ...]]
ZeroRule = Callable[[Sequence[bool]], bool]
Table = dict[frozenset[int], dict[int, LabelArray]]


def both(flags: Sequence[bool]) -> bool:
    """Sums: zero where every term is."""
    return all(flags)


def either(flags: Sequence[bool]) -> bool:
    """Products: zero where any factor is."""
    return any(flags)


def first(flags: Sequence[bool]) -> bool:
    """Quotients: zero where the numerator is."""
    return flags[0]


def neither(flags: Sequence[bool]) -> bool:
    """Functions that do not map zero to zero."""
    return False


def operand(name: str, value: Value, rank: int) -> Operand:
    """An operand in a space of ``rank`` axes as torch broadcasts it: its axes are the last ones."""
    return name, value, tuple(range(rank - value.rank, rank))


def broadcast(call: Call, *names: str) -> tuple[list[int], list[Operand]]:
    """The sizes that some arguments have together, and where their axes are there."""
    values = [call.value(n) for n in names]
    rank = max(v.rank for v in values)
    sizes = [max(v.shape[-k] for v in values if v.rank >= k) for k in range(rank, 0, -1)]
    return sizes, [operand(n, v, rank) for n, v in zip(names, values, strict=True)]


def meet(
    call: Call, shape: Sequence[int], operands: Sequence[Operand], zero: ZeroRule, gather: bool = True
) -> Arrays:
    """Let operands meet entry by entry in a space of sizes ``shape``.

    Arrays over the same axes are united. An array over fewer axes of an operand that is no activation
    (a norm weight shared by heads) dies only after all that it meets, and is gathered at use. An
    activation without labels freezes what it meets.

    Args:
        call: the call, which receives the facts.
        shape: sizes of the common index space.
        operands: argument name ("" for an intermediate), value, and the space's axis for each axis.
        zero: from "is zero where dead" of each operand, whether the result is.
        gather: whether constants and weights may be gathered to fit.

    Returns:
        The label arrays of the result, in the common space.
    """
    rank = len(shape)
    lifted = [lift(v.arrays, rank, axes) for _, v, axes in operands]
    sizes = [{axes[i] for i, n in enumerate(v.shape) if n > 1} for _, v, axes in operands]
    table: Table = {}
    for i, arrays in enumerate(lifted):
        for array in arrays:
            table.setdefault(array.axes, {})[i] = array
    loose = [gather and v.nature <= Nature.WEIGHT for _, v, _ in operands]
    result = []
    for axes in sorted(table, key=lambda c: (len(c), sorted(c))):
        _unite(call, table, axes)
        for i in range(len(operands)):
            if i not in table[axes] and not loose[i]:
                _freeze_unlabelled(call, table, axes, i, sizes[i])
        _relate(call, table, axes, loose)
        if any(axes < other and _follows(call, table, axes, other) for other in table):
            continue
        first = next(iter(table[axes].values()))
        flags = [_vanishes(call, table, axes, i, loose[i]) for i in range(len(operands))]
        result.append(LabelArray(first.ids, zero(flags)))
    joint = Value(tuple(shape), (False,) * rank, tuple(result), nature_of(v for _, v, _ in operands))
    named = tuple((name, axes) for name, _, axes in operands if name)
    if result:
        call.joins.append(Join(joint, named, gather))
    return tuple(result)


def _follows(call: Call, table: Table, coarse: frozenset[int], fine: frozenset[int]) -> bool:
    """Whether arrays over ``coarse`` say nothing that those of other operands over ``fine`` do not."""
    slots = all(call.space.is_slot(a.ids) for a in table[coarse].values())
    return not slots and not table[coarse].keys() & table[fine].keys()


def _vanishes(call: Call, table: Table, axes: frozenset[int], i: int, loose: bool) -> bool:
    """Whether operand ``i`` is zero where labels over ``axes``, or coarser ones tied to them, are dead."""
    if i in table[axes]:
        return table[axes][i].zero
    united = (c for c in table if c < axes and i in table[c] and _follows(call, table, c, axes))
    return not loose and any(table[c][i].zero for c in united)


def _unite(call: Call, table: Table, axes: frozenset[int]) -> None:
    first, *others = table[axes].values()
    for other in others:
        call.space.union(first.ids, other.ids)


def _freeze_unlabelled(call: Call, table: Table, axes: frozenset[int], i: int, sizes: set[int]) -> None:
    """Pin ``axes`` where operand ``i`` has full size there, but no labels."""
    covered = {a for c, entries in table.items() if i in entries for a in c}
    bare = (axes & sizes) - covered
    if bare and (bare == axes or frozenset(bare) not in table):
        call.pin(table[axes].values(), "meets an activation without labels on this axis")


def _relate(call: Call, table: Table, axes: frozenset[int], loose: Sequence[bool]) -> None:
    """Facts between arrays over ``axes`` and arrays of other operands over other, overlapping axes."""
    for other in table:
        if other == axes or not other & axes:
            continue
        strangers = [i for i in table[other] if i not in table[axes]]
        if any(j in table[other] for j in table[axes]):
            continue
        for i in strangers:
            for j, fine in table[axes].items():
                coarse = table[other][i]
                if _share_outer(table, (axes, j), (other, i)):
                    continue
                if not other < axes:
                    if not axes < other and not any(axes | other <= third for third in table):
                        call.pin((fine, coarse), "labels over crossing axes meet")
                elif loose[i] or call.space.is_slot(coarse.ids):
                    call.space.imply(coarse.ids, fine.ids)
                else:
                    call.space.union(coarse.ids, fine.ids)


def _share_outer(table: Table, one: tuple[frozenset[int], int], two: tuple[frozenset[int], int]) -> bool:
    """Whether arrays of two operands cross only in axes that are outer ones (heads) to both."""
    if one[0] < two[0] or two[0] < one[0]:
        return False
    shared = one[0] & two[0]
    return shared in table and all(shared <= _outer(table, axes, i) for axes, i in (one, two))


def _outer(table: Table, axes: frozenset[int], i: int) -> frozenset[int]:
    """Axes of an array of operand ``i`` over ``axes`` that have labels of their own there."""
    return frozenset().union(*(c for c in table if c < axes and i in table[c]))


def reduce_arrays(call: Call, arrays: Arrays, axes: set[int], keep: bool = False) -> Arrays:
    """Sum over ``axes``: arrays that cover them vanish, if dead entries add nothing.

    An array whose inner axis stays (a sum over heads, dim by dim) stays too: its rows must agree.
    """
    arrays = tuple(_agreeing(call, a, axes, arrays) for a in arrays)
    call.pin(
        (a for a in arrays if a.axes & axes and not a.zero),
        "is summed over, but does not vanish where removed",
    )
    kept = tuple(a for a in arrays if not a.axes & axes)
    if keep or not kept:
        return kept
    rest = [i for i in range(kept[0].ids.ndim) if i not in axes]
    return tuple(LabelArray(a.ids.reshape([a.ids.shape[i] for i in rest]), a.zero) for a in kept)


def _agreeing(call: Call, array: LabelArray, axes: set[int], arrays: Arrays) -> LabelArray:
    """``array`` without the summed axes if some of its own axes stay, with its rows united; else as it is."""
    outer = outer_axes(array, arrays)
    if not array.axes & axes or array.axes - outer <= axes:
        return array
    ids = array.ids
    for axis in array.axes & axes:
        ids = ids.take([0], axis)
    call.space.union(array.ids, ids)
    return LabelArray(ids, array.zero)


def contract(
    call: Call, spec: str, a: tuple[str, Value], b: tuple[str, Value], zero: ZeroRule = either
) -> Arrays:
    """A sum of products, such as ``"...i,oi->...o"`` (einsum notation).

    Args:
        call: the call, which receives the facts.
        spec: the contraction; every index is one letter, ``...`` stands for leading axes.
        a: name and value of the first operand.
        b: name and value of the second.
        zero: whether a term is zero, from whether each factor is; for sums of something else than products.

    Returns:
        The label arrays of the output.
    """
    ins, out = _letters(spec, (a[1].rank, b[1].rank))
    letters = list(dict.fromkeys(out + ins[0] + ins[1]))
    where = {c: i for i, c in enumerate(letters)}
    shape = [1] * len(letters)
    operands: list[Operand] = []
    for (name, value), names in zip((a, b), ins, strict=True):
        for c, n in zip(names, value.shape, strict=True):
            shape[where[c]] = max(shape[where[c]], n)
        operands.append((name, value, tuple(where[c] for c in names)))
    summed = {where[c] for c in letters if c not in out}
    _tag_contraction(call, operands, summed, {where[c] for c in set(ins[0]) & set(ins[1])})
    arrays = meet(call, shape, operands, zero, gather=False)
    return reduce_arrays(call, arrays, summed)


def _tag_contraction(call: Call, operands: Sequence[Operand], summed: set[int], common: set[int]) -> None:
    mixing = all(v.nature == Nature.ACTIVATION for _, v, _ in operands)
    for _, value, axes in operands:
        for array in value.arrays:
            where = {axes[i] for i in array.axes}
            if value.nature < Nature.ACTIVATION and where & summed:
                call.tag([array], Tag.CONTRACTED)
            if mixing and where & summed:
                call.tag([array], Tag.DOT)
            elif mixing and where - common:
                call.tag([array], Tag.VALUE)
            elif mixing:
                call.tag([array], Tag.HEAD)


def _letters(spec: str, ranks: tuple[int, int]) -> tuple[list[list[str]], list[str]]:
    """Index names of both inputs and of the output; ``...`` becomes numbered indices, aligned right."""
    left, out = spec.replace(" ", "").split("->")
    ins = left.split(",")
    spans = [
        rank - len(s.replace("...", "")) if "..." in s else 0 for s, rank in zip(ins, ranks, strict=True)
    ]
    widest = [f"_{i}" for i in reversed(range(max(spans)))]

    def names(text: str, span: int) -> list[str]:
        head, dots, tail = text.partition("...")
        return [*head, *(widest[len(widest) - span :] if dots else []), *tail]

    return [names(s, n) for s, n in zip(ins, spans, strict=True)], names(out, len(widest))
