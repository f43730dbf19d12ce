"""The captured program: flat inputs that are checked, and analyses that share what was found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ecospa_fx.errors import InputError
from ecospa_fx.passes.propagate import propagate
from ecospa_fx.program import Analysis, Program
from tests.models.tiny import X, program


@pytest.fixture(name="made", scope="module")
def _made() -> Program:
    return program(
        lambda m, x: {"y": F.linear(F.linear(x, m.a).softmax(-1), m.b), "n": 3}, a=(8, 6), b=(6, 8)
    )


@pytest.fixture(name="analysis", scope="module")
def _analysis(made: Program) -> Analysis:
    return propagate(made)


def test_what_it_holds(made: Program) -> None:
    assert made.parameters == {"a": (8, 6), "b": (6, 8)}
    assert made.inputs == ("x",)
    assert made.out_spec.num_leaves == 2
    assert made.state_in == made.state_out[:1] == (False,)


def test_leaves_are_checked(made: Program) -> None:
    assert made.leaves({"x": X}) == [X]
    assert made.leaves({"x": X[:1, :2]})[0].shape == (1, 2, 6)


REFUSED = {
    "width": (torch.ones(5, 7, 8), "size 8 on axis 2, but the capture had to fix size 6"),
    "rank": (torch.ones(5, 6), r"must have 3 axes, not shape \(5, 6\)"),
    "no tensor": (3.0, "must be a tensor, not float"),
}


@pytest.mark.parametrize(("value", "words"), REFUSED.values(), ids=REFUSED)
def test_leaves_that_do_not_fit(made: Program, value: object, words: str) -> None:
    with pytest.raises(InputError, match=f"input 'x' .*{words}"):
        made.leaves({"x": value})


def test_reasons_of_components(analysis: Analysis) -> None:
    component = analysis.partition.component
    rows, columns = (int(component[analysis.labels["a"][axis][0]]) for axis in (0, 1))
    assert "softmax" in str(analysis.reason(rows))
    assert "without labels" in str(analysis.reason(columns))


def test_a_free_component_has_no_reason() -> None:
    free = propagate(program(lambda m, x: F.linear(F.linear(x, m.a), m.b), a=(8, 6), b=(6, 8)))
    assert free.reason(int(free.partition.component[free.labels["a"][0][0]])) is None


def test_more_ties_leave_the_first_analysis_alone(analysis: Analysis) -> None:
    rows = analysis.labels["a"][0]
    before = analysis.partition.component.copy()
    tied = analysis.tied([(rows[:4], rows[4:])])
    assert np.array_equal(analysis.partition.component, before)
    assert np.array_equal(tied.partition.component[rows[:4]], tied.partition.component[rows[4:]])
    assert tied.partition.num_components == analysis.partition.num_components - 4
    assert len(tied.space.reasons) == len(analysis.space.reasons)


def test_all_values_have_labels_of_their_rank(analysis: Analysis) -> None:
    values = analysis.leaves()
    assert len(values) >= 6
    assert all(a.ids.ndim == v.rank for v in values for a in v.arrays)
