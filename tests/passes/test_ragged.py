"""Heads that keep different counts: planned one by one, and levelled with zeros in the graph."""

import numpy as np
import pytest

from ecospa_fx.errors import PlanError
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.level import level
from tests.passes.test_plan import kept_by_segment, largest_step, model, planned, size_of


def by_bundle(name: str, kept: np.ndarray) -> list[set[int]]:
    graph = model(name).couplings
    return [set(kept[graph.bundle_of == b].tolist()) for b in np.unique(graph.bundle_of)]


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_ragged_heads_lose_what_their_importance_says(name: str) -> None:
    of = model(name)
    plan = planned(of, seed=3, ratio=0.4, heads="ragged")
    assert any(len(counts) > 1 for counts in by_bundle(name, kept_by_segment(of, plan.removal)))
    assert size_of(of, plan.removal) == plan.params_after
    target = plan.coupled_before * 0.6
    assert target - largest_step(of, plan.removal, ("qk", "vo", "ffn")) < plan.coupled_after <= target


def test_ragged_rounds_go_on_ragged() -> None:
    of = model("llama")
    first = planned(of, seed=3, ratio=0.3, heads="ragged")
    again = planned(of, seed=4, removal=first.removal, ratio=0.3, heads="ragged")
    assert again.coupled_after < first.coupled_after
    with pytest.raises(PlanError, match="different counts already"):
        planned(of, seed=4, removal=first.removal, ratio=0.3)


def test_narrow_heads_carry_as_many_zeros_as_the_widest_needs() -> None:
    of = model("llama")
    graph, partition = of.couplings, of.analysis.partition
    dead = dead_labels(of.analysis, planned(of, seed=3, ratio=0.4, heads="ragged").removal)
    levelled = level(graph, of.analysis, dead)
    assert not (levelled & ~dead).any()
    for labels, equal in ((dead, False), (levelled, True)):
        gone = np.zeros(partition.num_components, bool)
        gone[partition.component[labels]] = True
        counts = np.bincount(
            graph.segment_of[(graph.segment_of >= 0) & ~gone], minlength=len(graph.bundle_of)
        )
        assert all(len(c) == 1 for c in by_bundle("llama", counts)) == equal


def test_equal_heads_are_left_alone() -> None:
    of = model("llama")
    dead = dead_labels(of.analysis, planned(of, seed=3, ratio=0.4).removal)
    assert level(of.couplings, of.analysis, dead) is dead


def test_whole_heads_leave_the_box() -> None:
    of = model("llama")
    removal = planned(of, ratio=0.45, remove_heads=True, min_width=8, threshold=0.5).removal
    dead = dead_labels(of.analysis, removal)
    assert 0 in kept_by_segment(of, removal)
    assert level(of.couplings, of.analysis, dead) is dead
