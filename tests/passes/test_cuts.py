"""Cuts: from two removals to what each parameter loses between them."""

import numpy as np
import pytest
import torch

from ecospa_fx.errors import PlanError
from ecospa_fx.passes.cuts import cuts
from ecospa_fx.removal import Removal
from ecospa_fx.stacks import Stack

SHAPES = {"a": (5, 3), "b": (3,), "c": (2, 2)}


def removal(**removed: dict[int, list[int]]) -> Removal:
    arrays = {n: {a: np.array(i) for a, i in axes.items()} for n, axes in removed.items()}
    return Removal({n: SHAPES.get(n, (9,)) for n in removed}, arrays)


FIRST = removal(a={0: [1]})
CASES = {
    "nothing": (Removal(), Removal(), {}),
    "rows": (Removal(), FIRST, {"a": [[0, 2, 3, 4], [0, 1, 2]]}),
    "rows and columns": (Removal(), removal(a={0: [1], 1: [0, 2]}), {"a": [[0, 2, 3, 4], [1]]}),
    "the same again": (FIRST, FIRST, {}),
    "one more": (FIRST, removal(a={0: [1, 3]}), {"a": [[0, 1, 3], [0, 1, 2]]}),
    "another axis": (FIRST, removal(a={0: [1], 1: [2]}), {"a": [[0, 1, 2, 3], [0, 1]]}),
    "another parameter": (FIRST, removal(a={0: [1]}, b={0: [0]}), {"b": [[1, 2]]}),
    "named without a loss": (Removal(), removal(c={0: []}), {}),
}


STACK = Removal({"a": (5, 3)}, {"a": {1: np.array([0, 4, 8, 11, 14])}}, {"a": Stack(0, 1)})


def test_a_stack_may_lose_what_all_matrices_share_before_it_loses_what_they_choose() -> None:
    """Its rows, say, of which nothing was chosen yet."""
    after = Removal(STACK.shapes, {"a": {0: np.array([1]), **STACK.removed["a"]}}, STACK.stacked)
    assert cuts(FIRST, after, SHAPES)["a"].new_shape == (4, 2)
    assert cuts(STACK, after, SHAPES)["a"].new_shape == (4, 2)


def test_a_stack_cannot_choose_in_another_way_than_before() -> None:
    with pytest.raises(PlanError, match="indices of a in another way"):
        cuts(STACK, removal(a={1: [0]}), SHAPES)


@pytest.mark.parametrize(("before", "after", "kept"), CASES.values(), ids=CASES)
def test_kept_in_present_indices(before: Removal, after: Removal, kept: dict[str, list[list[int]]]) -> None:
    found = cuts(before, after, SHAPES)
    assert found.keys() == kept.keys()
    for name, axes in kept.items():
        lines = [
            torch.isin(torch.arange(n), torch.tensor(i))
            for n, i in zip(found[name].old_shape, axes, strict=True)
        ]
        box = lines[0] if len(lines) == 1 else lines[0][:, None] & lines[1]
        assert torch.equal(found[name].kept, box)
        assert found[name].new_shape == tuple(map(len, axes))


REFUSED = {
    "unknown": (Removal(), removal(x={0: [1]}), "x is of shape .* absent"),
    "of another shape": (Removal(), Removal({"b": (4,)}, {"b": {0: np.array([3])}}), r"b is of shape \(4,\)"),
    "revived": (
        FIRST,
        Removal(),
        r"keeps entries of a \(axis 0\) that are gone already; plans are cumulative",
    ),
    "revived in part": (removal(a={0: [1, 2]}), removal(a={0: [2, 3]}), "keeps entries of a"),
    "all listed": (FIRST, removal(x={0: [1]}), r"x is of shape .*; it keeps entries of a"),
}


@pytest.mark.parametrize(("before", "after", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(before: Removal, after: Removal, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        cuts(before, after, SHAPES)
