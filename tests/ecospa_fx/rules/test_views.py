"""Views are told by which axes make up which; checked against torch's own reshape."""

from math import prod

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecospa_fx.oracles import Sample, drop
from ecospa_fx.oracles.trial import Operand, Trial
from ecospa_fx.rules.views import groups

Shape = tuple[int, ...]


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes with equally many entries, made by merging the same factors in two ways."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=5))
    return draw(merged(factors)), draw(merged(factors))


@st.composite
def merged(draw: st.DrawFn, factors: list[int]) -> Shape:
    shape: list[int] = []
    for factor in factors:
        if shape and draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape.append(factor)
    return tuple(shape)


def partial_index(shape: Shape, axes: list[int]) -> np.ndarray:
    """For every entry in row-major order, its place among the given axes alone."""
    places = np.unravel_index(np.arange(prod(shape)), shape)
    return sum((places[a] * prod(shape[b] for b in axes if b > a) for a in axes), np.zeros(prod(shape), int))


@given(reshapes())
def test_groups_move_entries_as_torch_does(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    found = groups(before, after)
    assert [a for ins, _ in found for a in ins] == list(range(len(before)))
    assert [a for _, outs in found for a in outs] == list(range(len(after)))
    for ins, outs in found:
        assert (partial_index(before, ins) == partial_index(after, outs)).all()


@given(reshapes())
def test_groups_cannot_be_split_further(shapes: tuple[Shape, Shape]) -> None:
    before, after = shapes
    for ins, outs in groups(before, after):
        parts = {prod(before[a] for a in ins[:i]) for i in range(1, len(ins))}
        others = {prod(after[a] for a in outs[:i]) for i in range(1, len(outs))}
        assert not (parts & others) - {1, prod(before[a] for a in ins)}


@given(reshapes(), st.data())
def test_any_view_of_any_labels_survives_the_drop_oracle(
    shapes: tuple[Shape, Shape], data: st.DataObject
) -> None:
    before, after = shapes
    axes = [a for a, n in enumerate(before) if n > 1]
    if not axes:
        return
    on = data.draw(st.lists(st.sets(st.sampled_from(axes), min_size=1, max_size=2).map(sorted).map(tuple),
                            min_size=1, max_size=2, unique=True))  # fmt: skip
    joint = [c for c in on if len(c) > 1]
    labels = tuple(c for c in on if len(c) > 1 or not any(set(c) <= set(j) for j in joint))
    if any(set(a) & set(b) for a in labels for b in labels if a != b):
        return
    drop(Trial(torch.ops.aten.reshape.default, Sample((Operand(before, labels), after))))
