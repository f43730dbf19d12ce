"""Choose: gradients in every form, and models in which nothing can go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.errors import CoupleError, GradientError
from ecospa_fx.passes.choose import Present, check_couples, choose
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.removal import Removal
from tests.models.snapshot import untouched

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="compiled")
def _compiled() -> CompiledModel:
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 5))
    return ecospa_fx.compile(model, args=(X,))


def chosen(compiled: CompiledModel, gradients: Any, how: str, **settings: Any) -> Plan:
    parameters = dict(compiled.named_parameters())
    present = Present(compiled.couplings, compiled.analysis.partition, Removal(), parameters, 7)
    with untouched(compiled):
        return choose(
            present, gradients, how, PlanSettings(**settings), ratio=0.5, seed=settings.get("seed", 0)
        )


def test_parameters_outside_of_the_graph_count(compiled: CompiledModel) -> None:
    plan = chosen(compiled, {n: torch.ones_like(p) for n, p in compiled.named_parameters()}, "magnitude")
    assert plan.params_before == 99 + 5 + 7
    assert plan.params_after == 111 - 5 * 11
    assert plan.score == "magnitude"


def test_own_gradients_are_used(compiled: CompiledModel) -> None:
    compiled(X).square().sum().backward()
    own = {n: p.grad for n, p in compiled.named_parameters()}
    assert chosen(compiled, None, "taylor") == chosen(compiled, own, "taylor")


def test_scores_that_need_no_gradients(compiled: CompiledModel) -> None:
    plan = chosen(compiled, None, "l1_product", allocation="uniform")
    strength = compiled.get_parameter("0.weight").abs().sum(1) * compiled.get_parameter("2.weight").abs().sum(
        0
    )
    gone = set(plan.removal.removed["0.weight"][0].tolist())
    assert len(gone) == 5
    assert len(gone & set(strength.argsort()[:5].tolist())) >= 4


@pytest.mark.parametrize("how", ["taylor", "fisher"])
def test_scores_that_need_gradients(compiled: CompiledModel, how: str) -> None:
    with pytest.raises(GradientError, match=f"score '{how}' needs gradients"):
        chosen(compiled, None, how, allocation="uniform")


def test_kinds_that_a_model_lacks(compiled: CompiledModel) -> None:
    check_couples(compiled.couplings, ("qk", "ffn"))
    with pytest.raises(
        CoupleError, match=r"no couples of kind qk \(there are couples of kind ffn: pass kinds="
    ):
        check_couples(compiled.couplings, ("qk",))
