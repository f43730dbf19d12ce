"""Each expert loses hidden units of its own, unless something tells them apart."""

import numpy as np
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.testing import random_removal
from tests.models.experts import CHOOSE_ALONE, CHOOSE_TOGETHER, EXPERTS, HIDDEN, WIDTH, HeadStacks


def compiled(kind: type[nn.Module]) -> CompiledModel:
    torch.manual_seed(0)
    return ecospa_fx.compile(kind().double(), args=(torch.randn(11, WIDTH, dtype=torch.float64),))


def choices(model: CompiledModel, name: str) -> int:
    """How many different sets of indices the matrices of a stack have lost."""
    (rows, axis), shape = model.removal.stacked[name], model.dense_shapes[name]
    kept = model.removal.kept(name, axis, model.removal.length(name, axis, shape)).reshape(shape[rows], -1)
    assert (kept.sum(1) == kept[0].sum()).all()
    return len(np.unique(kept, axis=0))


def cut_twice(model: CompiledModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for seed in (1, 2):
        model(torch.randn(7, WIDTH, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        model.apply(random_removal(model, 0.4, seed), optimizer)
        assert model.verify().within(1e-9)


@pytest.mark.parametrize("kind", CHOOSE_ALONE)
def test_experts_choose_for_themselves(kind: type[nn.Module]) -> None:
    model = compiled(kind)
    couples = [c for c in model.couplings.couples if c.kind == "ffn"]
    assert [(c.head, c.num_units) for c in couples] == [(e, HIDDEN) for e in range(EXPERTS)]
    cut_twice(model)
    assert choices(model, "up") > 1
    assert choices(model, "down") > 1


@pytest.mark.parametrize("kind", CHOOSE_TOGETHER)
def test_what_tells_hidden_units_apart_makes_experts_agree(kind: type[nn.Module]) -> None:
    model = compiled(kind)
    cut_twice(model)
    assert choices(model, "up") == choices(model, "down") == 1


def test_a_running_sum_over_hidden_units_holds_them_all() -> None:
    class Running(CHOOSE_ALONE[0]):  # type: ignore[misc,valid-type]
        def between(self, h: torch.Tensor) -> torch.Tensor:
            return self.gated(h).cumsum(-1)

    assert not [c for c in compiled(Running).couplings.couples if c.kind == "ffn"]


def test_heads_in_an_axis_of_the_weights_lose_dims_of_their_own() -> None:
    model = compiled(HeadStacks)
    assert [c.num_units for c in model.couplings.couples if c.kind == "qk"] == [6] * EXPERTS
    cut_twice(model)
    assert choices(model, "q") > 1
    assert choices(model, "v") > 1


def test_whole_heads_in_an_axis_of_the_weights_go() -> None:
    model = compiled(HeadStacks)
    model(torch.randn(7, WIDTH, dtype=torch.float64)).square().mean().backward()
    model.sparsify(ratio=0.5, remove_heads=True)
    assert model.verify().within(1e-9)
    assert model.get_parameter("q").shape[0] < EXPERTS


@pytest.mark.parametrize("heads", ["uniform", "ragged"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD])
def test_a_plan_takes_the_weakest_units_of_each_expert(
    heads: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    model = compiled(CHOOSE_ALONE[0])
    made = optimizer(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.randn(7, WIDTH, dtype=torch.float64)).square().mean().backward()
        made.step()
    plan = model.plan(ratio=0.4, heads=heads)
    assert ecospa_fx.Plan.from_json(plan.to_json()) == plan
    model.sparsify(ratio=0.4, heads=heads, optimizer=made)
    assert model.verify().within(1e-9)
    made.step()
    assert plan.params_after == sum(p.numel() for p in model.parameters())
    assert choices(model, "up") > 1
