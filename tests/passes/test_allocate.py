"""In which order rungs go, on ladders small enough to follow by hand."""

import numpy as np
import pytest

from ecospa_fx.ladder import Ladder
from ecospa_fx.passes.allocate import order
from ecospa_fx.plan import PlanSettings


def ladder(*bundles: list[float], stay: int = 1, chunk: int = 1) -> Ladder:
    """A ladder of one-unit rungs with the scores given; the last ``stay`` of each bundle must stay."""
    bundle = np.repeat(np.arange(len(bundles)), [len(b) for b in bundles])
    rung = np.concatenate([np.arange(len(b)) for b in bundles])
    scores = np.concatenate([np.sort(b) for b in bundles])
    sizes = np.bincount(bundle)[bundle]
    end = np.arange(len(rung)) - rung + (rung // chunk + 1) * chunk - 1
    last = np.where(end - np.arange(len(rung)) + rung < sizes - stay, end, -1)
    total = np.bincount(bundle, scores)[bundle]
    cells = np.arange(len(rung))
    return Ladder(cells, cells, bundle, rung, last, scores / total, scores)


def taken(of: Ladder, importance: list[float], **settings: object) -> list[tuple[int, int]]:
    """Bundle and rung of each cell, in the order in which they go."""
    cells = order(of, np.array(importance), PlanSettings(**settings))  # type: ignore[arg-type]
    return [(int(of.bundle[c]), int(of.rung[c])) for c in cells]


def test_algorithm_1_takes_the_least_important_first() -> None:
    """K = 0.5 of two bundles is one; it loses what lies beyond 90 % of its score, then the other's turn."""
    of = ladder([1, 1, 8, 10], [5, 5, 5, 5])
    first = taken(of, [1.0, 9.0], top_k=0.5, threshold=0.9)
    assert first[:2] == [(0, 0), (0, 1)]  # 1 + 1 of 20: what is left holds 90 %
    assert first[2] == (0, 2)  # still the less important one, although its units now count for more
    assert first[3:] == [(1, 0), (1, 1), (1, 2)]


def test_what_a_bundle_keeps_becomes_more_important() -> None:
    """After two of six units went, 90 % of the score is on 67 % of the units: 1.0 becomes 1.35."""
    of = ladder([1, 1, 1, 1, 8, 8], [5, 5, 5, 5])
    assert taken(of, [1.0, 1.3], top_k=0.5, threshold=0.9)[:3] == [(0, 0), (0, 1), (1, 0)]
    assert taken(of, [1.0, 1.4], top_k=0.5, threshold=0.9)[:3] == [(0, 0), (0, 1), (0, 2)]


def test_all_bundles_of_a_turn_lose_at_least_one_step() -> None:
    of = ladder([1, 1, 1], [1, 1, 1], [1, 1, 1])
    assert taken(of, [3.0, 2.0, 1.0], top_k=1.0, threshold=0.99)[:3] == [(2, 0), (1, 0), (0, 0)]


def test_unknown_importance_comes_last() -> None:
    of = ladder([1, 1, 1], [1, 1, 1])
    assert taken(of, [np.nan, 5.0], top_k=0.5)[:2] == [(1, 0), (1, 1)]


def test_uniform_takes_the_same_fraction() -> None:
    of = ladder([1, 1, 1, 1], [9] * 8)
    cells = taken(of, [1, 1], allocation="uniform")
    assert cells[:6] == [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1), (1, 3)]


def test_global_ranks_all_rungs() -> None:
    of = ladder([1, 4, 6, 9], [2, 3, 7, 8])
    assert taken(of, [1, 1], allocation="global") == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("allocation", ["ecospa", "uniform", "global"])
def test_steps_of_several_rungs_stay_together(allocation: str) -> None:
    of = ladder([1, 9, 2, 3, 5, 5], [4, 4, 4, 4, 4, 4], chunk=2)
    cells = taken(of, [1, 2], allocation=allocation)
    assert len(cells) == 8
    for start in range(0, 8, 2):
        assert cells[start][0] == cells[start + 1][0]
        assert cells[start][1] + 1 == cells[start + 1][1]


@pytest.mark.parametrize("allocation", ["ecospa", "uniform", "global"])
def test_an_empty_ladder(allocation: str) -> None:
    none = np.zeros(0, np.int64)
    empty = Ladder(none, none, none, none, none, np.zeros(0), np.zeros(0))
    assert not len(order(empty, np.zeros(0), PlanSettings(allocation=allocation)))
