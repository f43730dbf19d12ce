"""Plans keep their promises: the size that was asked for, equal counts over heads, minimum widths."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ecospa_fx
from ecospa_fx.census import Census
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import CoupleError, GradientError, PlanError
from ecospa_fx.passes.plan import plan
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.removal import Removal

ALLOCATIONS = ("ecospa", "uniform", "global")


@cache
def model(name: str) -> CompiledModel:
    """A small model that is planned for, and never changed."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    tokens = {"input_ids": torch.arange(26).reshape(2, 13) % 23}
    common: dict[str, Any] = {
        "vocab_size": 23,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "use_cache": False,
    }
    if name == "llama":  # two query heads for each of two KV groups
        llama = LlamaConfig(hidden_size=24, intermediate_size=36, num_key_value_heads=2, head_dim=8, **common)
        return ecospa_fx.compile(LlamaForCausalLM(llama), kwargs=tokens)
    if name == "neox":  # fused, rotary on half of each head: two segments of units for each head
        neox = GPTNeoXConfig(hidden_size=32, intermediate_size=20, rotary_pct=0.5, **common)
        return ecospa_fx.compile(GPTNeoXForCausalLM(neox), kwargs=tokens)
    chain = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 7))  # axes that cross
    return ecospa_fx.compile(chain, args=(torch.randn(5, 7),))


def numbers(of: CompiledModel, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = generator.lognormal(size=len(of.couplings.couple_of))
    return scores, generator.lognormal(size=len(of.couplings.couples))


def planned(of: CompiledModel, seed: int = 0, removal: Removal | None = None, target: int | None = None,
            ratio: float | None = None, **settings: Any) -> Plan:  # fmt: skip
    scores, importance = numbers(of, seed)
    graph, partition = of.couplings, of.analysis.partition
    return plan(graph, partition, removal or Removal(), scores, importance,
                ratio=ratio, target_params=target, settings=PlanSettings(**settings))  # fmt: skip


def size_of(of: CompiledModel, removal: Removal) -> int:
    return sum(int(np.prod(removal.shape(n, s))) for n, s in of.couplings.shapes.items())


def kept_by_segment(of: CompiledModel, removal: Removal) -> np.ndarray:
    """Units left in each segment; a unit is there or gone with all its indices."""
    graph = of.couplings
    gone, left = np.zeros(len(graph.couple_of), bool), np.zeros(len(graph.couple_of), bool)
    for axis in graph.axes:
        kept = removal.kept(axis.parameter, axis.axis, len(axis.components))
        left[axis.components[kept]] = True
        gone[axis.components[~kept]] = True
    assert not (gone & left).any()
    assert (of.analysis.partition.pin[gone] < 0).all()
    units = graph.segment_of >= 0
    return np.bincount(graph.segment_of[units & left], minlength=len(graph.bundle_of))


def largest_step(of: CompiledModel, removal: Removal, kinds: tuple[str, ...]) -> float:
    """Parameters of one unit of each couple of the largest bundle."""
    census = Census(of.couplings, of.analysis.partition, removal, kinds)
    cost = census.unit_params(census.dead)[census.units]
    segment = of.couplings.segment_of[census.units]
    unit = np.zeros(len(of.couplings.bundle_of))
    np.maximum.at(unit, segment, cost)
    return float(np.bincount(of.couplings.bundle_of, unit).max())


def check(
    of: CompiledModel, before: Removal, made: Plan, asked: float, heads: bool, slack: float = 1.0
) -> None:
    assert made.params_after == size_of(of, made.removal)
    assert made.params_before == size_of(of, before)
    removed = made.coupled_before - made.coupled_after
    assert removed == made.params_before - made.params_after
    assert asked - 1e-6 <= removed < asked + max(slack * largest_step(of, before, made.settings.kinds), 1)
    kept, bundle = kept_by_segment(of, made.removal), of.couplings.bundle_of
    for b in np.unique(bundle):
        counts = kept[bundle == b]
        alive = counts[counts > 0] if heads else counts
        assert len(alive)
        assert len(set(alive)) == 1
    assert Plan.from_json(made.to_json()) == made


@given(
    name=st.sampled_from(["llama", "neox", "chain"]),
    ratio=st.floats(0, 0.75),
    seed=st.integers(0, 99),
    allocation=st.sampled_from(ALLOCATIONS),
    heads=st.booleans(),
)
def test_the_target_is_met_and_heads_stay_equal(
    name: str, ratio: float, seed: int, allocation: str, heads: bool
) -> None:
    of = model(name)
    made = planned(of, seed, ratio=ratio, allocation=allocation, remove_heads=heads)
    check(of, Removal(), made, ratio * made.coupled_before, heads)


@given(
    name=st.sampled_from(["llama", "neox", "chain"]),
    ratios=st.lists(st.floats(0, 0.4), min_size=2, max_size=3),
    seed=st.integers(0, 99),
    heads=st.booleans(),
)
def test_rounds_add_up(name: str, ratios: list[float], seed: int, heads: bool) -> None:
    of, removal = model(name), Removal()
    for i, ratio in enumerate(ratios):
        made = planned(of, seed + i, removal, ratio=ratio, remove_heads=heads)
        check(of, removal, made, ratio * made.coupled_before, heads)
        for parameter, axes in removal.removed.items():
            for axis, gone in axes.items():
                assert np.isin(gone, made.removal.removed[parameter][axis]).all()
        removal = made.removal


@given(target=st.integers(6000, 9000), allocation=st.sampled_from(ALLOCATIONS))
def test_target_params_is_the_whole_models_size(target: int, allocation: str) -> None:
    of = model("llama")
    made = planned(of, target=target, allocation=allocation)
    check(of, Removal(), made, max(made.params_before - target, 0), False)
    assert made.params_after <= max(target, made.params_before if target >= made.params_before else target)


def test_parameters_outside_the_graph_count_towards_the_target() -> None:
    of = model("llama")
    scores, importance = numbers(of, 0)
    graph, partition = of.couplings, of.analysis.partition
    made = plan(graph, partition, Removal(), scores, importance, target_params=8000, outside=1000)
    assert 7000 < made.params_after <= 8000
    assert made.params_after == size_of(of, made.removal) + 1000


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_nothing_goes_at_ratio_zero(allocation: str) -> None:
    made = planned(model("llama"), ratio=0, allocation=allocation)
    assert not made.removal.removed
    assert made.params_before == made.params_after
    assert all(loss.lost == 0 for loss in made.losses)


@given(width=st.integers(1, 6), ratio=st.floats(0, 0.5), seed=st.integers(0, 20))
def test_minimum_width_is_in_rows(width: int, ratio: float, seed: int) -> None:
    of = model("llama")
    made = planned(of, seed, ratio=ratio, min_width=width)
    rows = {"qk": 2, "vo": 1, "ffn": 1}  # a rotary pair takes two rows of k_proj
    assert all(loss.after * rows[loss.kind] >= width for loss in made.losses)


@given(ratio=st.floats(0, 0.6), seed=st.integers(0, 20), allocation=st.sampled_from(ALLOCATIONS))
def test_rounded_widths(ratio: float, seed: int, allocation: str) -> None:
    of = model("llama")
    made = planned(of, seed, ratio=ratio, round_to=4, allocation=allocation)
    rows = {"qk": 2, "vo": 1, "ffn": 1}
    assert all(loss.after * rows[loss.kind] % 4 == 0 for loss in made.losses)
    check(of, Removal(), made, ratio * made.coupled_before, False, slack=4)


def test_rounding_counts_all_segments_of_a_head() -> None:
    """Two rotary rows more or less: the rows of both segments add up to a multiple."""
    of = model("neox")  # a head has 2 rotary pairs and 4 other dims
    made = planned(of, ratio=0.4, round_to=4, kinds=("vo", "ffn"))
    assert all(loss.after % 4 == 0 for loss in made.losses)


@given(most=st.floats(0, 1), seed=st.integers(0, 20), allocation=st.sampled_from(ALLOCATIONS))
def test_limits_hold_over_all_rounds(most: float, seed: int, allocation: str) -> None:
    of, removal = model("llama"), Removal()
    for i in range(2):
        made = planned(of, seed + i, removal, ratio=0.25, allocation=allocation,
                       limits={"qk": most, "model.layers.0.*": 0.75})  # fmt: skip
        removal = made.removal
        for loss in made.losses:
            limit = min(most if loss.kind == "qk" else 1, 0.75 if ".0." in loss.couple else 1)
            assert loss.dense - loss.after <= limit * loss.dense + 1e-9


def test_limits_by_couple_and_by_parameter() -> None:
    made = planned(model("llama"), ratio=0.4, limits={"model.layers.0.mlp.ffn": 0, "*.1.*.gate_proj.*": 0.25})
    losses = {loss.couple: loss for loss in made.losses}
    assert losses["model.layers.0.mlp.ffn"].lost == 0
    assert losses["model.layers.1.mlp.ffn"].lost <= 9


def test_only_kinds_in_play_lose() -> None:
    made = planned(model("llama"), ratio=0.5, kinds=("ffn",))
    assert {loss.kind for loss in made.losses} == {"ffn"}
    assert not [n for n in made.removal.removed if "attn" in n]
    assert made.coupled_before == 2 * 3 * 24 * 36


def test_residual_streams_can_be_asked_for() -> None:
    of = model("llama")
    made = planned(of, ratio=0.3, kinds=("residual",), allocation="uniform")
    check(of, Removal(), made, 0.3 * made.coupled_before, False)
    shapes = {n: made.removal.shape(n, s) for n, s in of.couplings.shapes.items()}
    assert len({shapes["model.embed_tokens.weight"][1], shapes["model.norm.weight"][0]}) == 1
    assert (
        shapes["model.layers.0.mlp.up_proj.weight"][1]
        == shapes["model.layers.1.mlp.down_proj.weight"][0]
        < 24
    )


def test_whole_heads_go_where_units_alone_do_not_suffice() -> None:
    of = model("llama")
    with pytest.raises(PlanError, match="out of reach"):
        planned(of, ratio=0.93)
    made = planned(of, ratio=0.93, remove_heads=True)
    kept = {loss.couple: loss.after for loss in made.losses}
    for layer in range(2):
        heads = [(kept[f"model.layers.{layer}.self_attn.qk[{h}]"] > 0,
                  kept[f"model.layers.{layer}.self_attn.vo[{h}]"] > 0) for h in range(2)]  # fmt: skip
        assert all(qk == vo for qk, vo in heads)
        assert any(qk for qk, _ in heads)


def test_a_weak_head_goes_first() -> None:
    of = model("llama")
    scores, importance = numbers(of, 0)
    names = [c.name for c in of.couplings.couples]
    for kind in ("qk", "vo"):
        importance[names.index(f"model.layers.1.self_attn.{kind}[0]")] = 1e-9
    made = plan(of.couplings, of.analysis.partition, Removal(), scores, importance, ratio=0.3,
                settings=PlanSettings(remove_heads=True))  # fmt: skip
    lost = {loss.couple for loss in made.losses if loss.after == 0}
    assert lost == {f"model.layers.1.self_attn.{kind}[0]" for kind in ("qk", "vo")}


def test_the_weakest_units_go() -> None:
    of = model("llama")
    scores, _ = numbers(of, 0)
    made = planned(of, ratio=0.4, allocation="uniform")
    gone = {p: set(made.removal.removed[p][0]) for p in made.removal.removed if "gate" in p}
    for parameter, indices in gone.items():
        axis = next(a for a in of.couplings.axes if a.parameter == parameter and a.axis == 0)
        ranked = np.argsort(scores[axis.components])
        assert indices == set(ranked[: len(indices)])


def test_plans_are_deterministic() -> None:
    assert planned(model("neox"), ratio=0.4) == planned(model("neox"), ratio=0.4)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), True, "0.3"])
def test_ratios_out_of_range(ratio: Any) -> None:
    with pytest.raises(PlanError, match=r"not in \[0, 1\)"):
        planned(model("llama"), ratio=ratio)


@pytest.mark.parametrize("target", [0, -5, 1.5, True])
def test_targets_that_are_no_sizes(target: Any) -> None:
    with pytest.raises(PlanError, match="whole number above zero"):
        planned(model("llama"), target=target)


def test_both_or_neither_of_ratio_and_target() -> None:
    with pytest.raises(PlanError, match="not both"):
        planned(model("llama"), ratio=0.1, target=8000)
    with pytest.raises(PlanError, match="not neither"):
        planned(model("llama"))


def test_out_of_reach_says_the_most_and_who_holds_the_rest() -> None:
    of = model("llama")
    with pytest.raises(PlanError) as error:
        planned(of, ratio=0.99)
    text = str(error.value)
    assert "model.layers.0.self_attn.q_proj.weight: 192 (minimum width" in text
    most = float(text.split("a ratio of ")[1].split()[0])
    made = planned(of, ratio=most)
    assert made.coupled_after - made.coupled_before <= 0
    with pytest.raises(PlanError, match="out of reach"):
        planned(of, ratio=most + 2e-4)


def test_a_target_out_of_reach_names_the_embeddings() -> None:
    with pytest.raises(PlanError, match=r"stay at least.*\n.*weight: 552 \(only couples of kind residual"):
        planned(model("llama"), target=100)


def test_unknown_kinds_and_limits_get_a_hint() -> None:
    with pytest.raises(PlanError, match="unknown kinds 'fnn'; there are"):
        planned(model("llama"), ratio=0.1, kinds=("fnn",))
    with pytest.raises(PlanError, match=r"limit 'model\.layers\.0\.mlp\.fnn' fits no couple; did you mean"):
        planned(model("llama"), ratio=0.1, limits={"model.layers.0.mlp.fnn": 0.5})


def test_scores_must_fit_and_be_finite() -> None:
    of = model("llama")
    scores, importance = numbers(of, 0)
    graph, partition = of.couplings, of.analysis.partition
    with pytest.raises(PlanError, match="unit scores have shape"):
        plan(graph, partition, Removal(), scores[:3], importance, ratio=0.1)
    with pytest.raises(PlanError, match="importance has shape"):
        plan(graph, partition, Removal(), scores, importance[:3], ratio=0.1)
    scores[graph.couples[-1].units[0]] = np.nan
    with pytest.raises(PlanError, match=r"NaN or infinite in model\.layers\.1\.mlp\.ffn"):
        plan(graph, partition, Removal(), scores, importance, ratio=0.1)


def test_algorithm_1_needs_gradients_and_the_others_do_not() -> None:
    of = model("llama")
    scores, _ = numbers(of, 0)
    graph, partition = of.couplings, of.analysis.partition
    with pytest.raises(GradientError, match="backward"):
        plan(graph, partition, Removal(), scores, ratio=0.1)
    made = plan(graph, partition, Removal(), scores, ratio=0.1, settings=PlanSettings(allocation="uniform"))
    assert made.params_after < made.params_before


def test_couples_without_gradients_go_last() -> None:
    of = model("llama")
    scores, importance = numbers(of, 0)
    names = [c.name for c in of.couplings.couples]
    importance[names.index("model.layers.0.mlp.ffn")] = np.nan
    made = plan(of.couplings, of.analysis.partition, Removal(), scores, importance, ratio=0.4)
    assert next(loss.lost for loss in made.losses if loss.couple == "model.layers.0.mlp.ffn") == 0


def test_a_model_without_couples() -> None:
    of = ecospa_fx.compile(nn.Linear(4, 3), args=(torch.randn(2, 4),))
    graph, partition = of.couplings, of.analysis.partition
    zeros = np.zeros(len(graph.couple_of))
    with pytest.raises(CoupleError, match="no couples, so nothing can go: weight axis"):
        plan(graph, partition, Removal(), zeros, np.zeros(0), target_params=3)
