"""The roll oracle: what the rule ties together can be rotated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ecospa_fx.arrays import along
from ecospa_fx.labels import Ids, Nature, Value
from ecospa_fx.layout import Layout, regular
from ecospa_fx.oracles.trial import Trial, require_equal, restrict
from ecospa_fx.rules.call import Join, item


def roll(trial: Trial) -> int:
    """Rotate the members of a tie by one, along every axis in turn.

    Where the rule says that a rotation of labels permutes the entries of every operand and of the
    result, permuting the operands has to permute the result. A tie between the wrong indices fails
    here even where a removal, or a random permutation, happens to agree.

    Args:
        trial: the call.

    Returns:
        How many rotations were symmetries and were compared.

    Raises:
        VerifyError: the result does not follow.
    """
    original = trial.results(trial.tensors)
    count = 0
    for move, text in _moves(trial):
        moved = _moved(trial, move)
        if moved is None:
            continue
        count += 1
        if trial.sample.shape_only:
            continue
        tensors = [restrict(t, p) for t, p in zip(trial.tensors, moved[0], strict=True)]
        for before, after, layout in zip(original, trial.results(tensors), moved[1], strict=True):
            require_equal(trial, restrict(before, layout), after, f"with labels rolled along {text}")
    return count


def _moves(trial: Trial) -> Iterator[tuple[Ids, str]]:
    """Component maps: every value's labels rolled along one of its axes."""
    seen: set[bytes] = set()
    named = [(v, f"operand {i}") for i, v in enumerate(trial.given)]
    for value, name in [*named, *((v, f"result {i}") for i, v in enumerate(trial.got))]:
        for axis in sorted({a for array in value.arrays for a in array.axes}):
            move = _component_map(trial, [a.ids for a in value.arrays if axis in a.axes], axis)
            if move is not None and move.tobytes() not in seen:
                seen.add(move.tobytes())
                yield move, f"axis {axis} of {name}"


def _component_map(trial: Trial, arrays: Sequence[Ids], axis: int) -> Ids | None:
    """Each component to the one before it along ``axis``; None unless that is a permutation of free ones."""
    partition = trial.analysis.partition
    move = np.arange(partition.num_components)
    for ids in arrays:
        here, there = trial.component[ids], trial.component[np.roll(ids, 1, axis)]
        move[here] = there
        if (move[here] != there).any() or (partition.pin[here] >= 0).any():
            return None
    moves = (move != np.arange(len(move))).any()
    return move if moves and len(np.unique(move)) == len(move) else None


def _moved(trial: Trial, move: Ids) -> tuple[list[Layout], list[Layout]] | None:
    """How operands and results are permuted, or None where ``move`` is no symmetry of the labels."""
    given = [_permutation(trial, v, move) for v in trial.given]
    got = [_permutation(trial, v, move) for v in trial.got]
    for join in trial.call.joins:
        if join.gather:
            joint = _permutation(trial, join.joint, move)
            for i, layout in _gathered_operands(trial, join, joint):
                own = given[i]
                given[i] = None if layout is None or own is None else _over(own, layout)
    if any(p is None for p in (*given, *got)):
        return None
    return [p for p in given if p is not None], [p for p in got if p is not None]


def _gathered_operands(trial: Trial, join: Join, joint: Layout | None) -> Iterator[tuple[int, Layout | None]]:
    """Operands that are gathered at use follow what they meet."""
    for name, axes in join.operands:
        value = item(trial.call.args, name)
        if value.nature <= Nature.WEIGHT:
            number = next(i for i, v in enumerate(trial.given) if v is value)
            yield number, None if joint is None else _projected(joint, value, axes)


def _over(own: Layout, gathered: Layout) -> Layout:
    """An operand keeps its own permutation along axes that take no part in the join."""
    return Layout(own.dense, {**own.index, **gathered.index})


def _projected(joint: Layout, value: Value, axes: Sequence[int]) -> Layout | None:
    index = {}
    for axis, place in enumerate(axes):
        if value.shape[axis] > 1 and joint.dense[place] > 1:
            at = joint.at(place)
            if any(n > 1 and p not in axes for p, n in enumerate(at.shape)):
                return None
            order = [*axes, *(p for p in range(at.ndim) if p not in axes)]
            index[axis] = at.transpose(order).reshape([at.shape[p] for p in axes])
    return Layout(value.shape, index)


def _permutation(trial: Trial, value: Value, move: Ids) -> Layout | None:
    """Where each entry comes from if every label becomes ``move`` of it."""
    index: dict[int, Ids] = {}
    for array in sorted(value.arrays, key=lambda a: (len(a.axes), min(a.axes, default=0))):
        have = np.broadcast_to(
            trial.component[array.ids],
            [n if a in array.axes else 1 for a, n in enumerate(value.shape)],
        )
        want = move[have]
        for axis in (a for a in index if a in array.axes):
            if any(n > 1 and a not in array.axes for a, n in enumerate(index[axis].shape)):
                return None
            shape = [
                n if a == axis else m
                for a, (n, m) in enumerate(zip(index[axis].shape, have.shape, strict=True))
            ]
            have = np.take_along_axis(have, np.broadcast_to(index[axis], shape), axis)
        rest = sorted(array.axes - index.keys())
        for axis in rest[:-1]:
            index[axis] = along(np.arange(value.shape[axis]), value.rank, axis)
        if rest:
            have, want = (np.moveaxis(x, rest[-1], -1) for x in (have, want))
            order, wanted = np.argsort(have, -1, kind="stable"), np.argsort(want, -1, kind="stable")
            if (np.take_along_axis(have, order, -1) != np.take_along_axis(want, wanted, -1)).any():
                return None
            at = np.empty_like(order)
            np.put_along_axis(at, wanted, order, -1)
            index[rest[-1]] = regular(np.moveaxis(at, -1, rest[-1]), rest[-1])
        elif (have != want).any():
            return None
    return Layout(value.shape, index)
