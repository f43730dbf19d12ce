"""Follow: from removed parameter entries to dead labels, the finest first."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from torch import Tensor

from ecospa_fx.errors import PlanError
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.propagate import propagate
from ecospa_fx.program import Analysis
from ecospa_fx.removal import Removal
from tests.models.tiny import program

SHAPES = {"q": (6, 6), "k": (6, 6), "v": (6, 6), "o": (6, 6), "s": (3,)}


def heads(m: object, x: Tensor) -> Tensor:
    """Three heads of two, and a scale for each head."""
    q, k, v = (F.linear(x, w).unflatten(-1, (3, 2)).transpose(1, 2) for w in (m.q, m.k, m.v))
    y = (q @ k.mT).softmax(-1) @ v * m.s.view(-1, 1, 1)
    return F.linear(y.transpose(1, 2).flatten(-2), m.o)


@pytest.fixture(name="analysis", scope="module")
def _analysis() -> Analysis:
    return propagate(program(heads, **SHAPES))


def removal(**removed: tuple[int, list[int]]) -> Removal:
    return Removal({n: SHAPES[n] for n in removed}, {n: {a: np.array(i)} for n, (a, i) in removed.items()})


WHOLE = {n: (0, [2, 3]) for n in "qkv"} | {"o": (1, [2, 3]), "s": (0, [1])}


def test_nothing_dies_by_itself(analysis: Analysis) -> None:
    assert not dead_labels(analysis, Removal()).any()


def test_units_die(analysis: Analysis) -> None:
    dead = dead_labels(analysis, removal(q=(0, [1]), k=(0, [1])))
    assert np.flatnonzero(dead[analysis.labels["q"][0]]).tolist() == [1]
    assert np.flatnonzero(dead[analysis.labels["k"][0]]).tolist() == [1]
    assert not dead[analysis.labels["v"][0]].any()


def test_a_head_dies_with_all_that_it_is_made_of(analysis: Analysis) -> None:
    dead = dead_labels(analysis, removal(**WHOLE))
    assert dead[analysis.labels["s"][0]].tolist() == [False, True, False]


TORN = {
    "keys without queries": {"k": (0, [1])},
    "a head without its values": {"s": (0, [1])},
    "what the model returns": {"o": (0, [1])},
    "values without a head's scale": {n: w for n, w in WHOLE.items() if n != "s"},
}


@pytest.mark.parametrize("removed", TORN.values(), ids=TORN)
def test_parts_of_units_are_refused(analysis: Analysis, removed: dict[str, tuple[int, list[int]]]) -> None:
    with pytest.raises(PlanError, match="ties more entries together than the plan removes"):
        dead_labels(analysis, removal(**removed))
