"""Whole heads: which can go, in which order, and what stays."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.census import Census
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.passes.heads import Heads

X = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Four heads of three; values may be shared by all heads."""

    def __init__(self, shared_bias: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(*s) for s in ((8, 12), (8, 12), (8, 12), (12, 8)))
        self.bias = nn.Parameter(torch.randn(1, 4, 1, 1)) if shared_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (4, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, self.bias)
        return self.o(y.transpose(1, 2).flatten(-2))


def compiled(*blocks: nn.Module) -> CompiledModel:
    return ecospa_fx.compile(nn.Sequential(*blocks), args=(X,))


def heads(
    model: CompiledModel, strength: dict[str, float] | None = None, kinds: tuple[str, ...] = ("qk", "vo")
) -> Heads:
    census = Census(model.couplings, model.analysis.partition, model.removal, kinds)
    values = [(strength or {}).get(c.name, 1.0) for c in model.couplings]
    return Heads(census, np.array(values))


def names(model: CompiledModel, slots: np.ndarray) -> list[str]:
    by_slot = {c.slot: c.name for c in model.couplings if c.kind == "vo"}
    return [by_slot[int(s)] for s in slots]


def order(model: CompiledModel, of: Heads, threshold: float = 0.9, most: int = 99) -> tuple[list[str], int]:
    slots, weak = of.order(np.full(int(model.couplings.bundle_of.max()) + 1, most), threshold)
    return names(model, slots), weak


def test_all_but_one_head_of_each_layer_may_go() -> None:
    model = compiled(Attention(), Attention())
    found, weak = order(model, heads(model))
    assert len(found) == 6
    assert weak == 0
    assert len({n.split(".")[0] for n in found[:2]} | {n.split(".")[0] for n in found[-2:]}) == 2


def test_the_weak_go_first() -> None:
    model = compiled(Attention(), Attention())
    strength = {"1.vo[2]": 0.01, "1.qk[2]": 0.01, "0.vo[1]": 0.05, "0.qk[1]": 0.2}
    found, weak = order(model, heads(model, strength))
    assert found[:2] == ["1.vo[2]", "0.vo[1]"]
    assert weak == 2


def test_unknown_strength_counts_as_average() -> None:
    model = compiled(Attention())
    found, _ = order(model, heads(model, {"0.vo[1]": float("nan"), "0.qk[3]": 0.1, "0.vo[3]": 0.1}))
    assert found[0] == "0.vo[3]"


def test_limits_count_heads() -> None:
    model = compiled(Attention())
    assert len(order(model, heads(model), most=6)[0]) == 2  # a head has three units in each bundle


def test_a_head_goes_only_if_all_of_it_is_in_play() -> None:
    model = compiled(Attention())
    assert not len(heads(model, kinds=("vo",)).ids)
    assert len(heads(model).ids) == 4


def test_units_of_a_head_are_queries_keys_and_values() -> None:
    model = compiled(Attention())
    of = heads(model)
    gone = of.units_of(of.ids[:1])
    couples = {model.couplings.couples[c].name for c in np.unique(model.couplings.couple_of[gone])}
    assert couples == {"0.qk[0]", "0.vo[0]"}
    assert gone.sum() == 6


def test_a_bias_per_head_goes_with_its_head() -> None:
    model = compiled(Attention(shared_bias=True))
    model(X).square().sum().backward()
    report = model.sparsify(ratio=0.9, remove_heads=True)
    left = [loss.after for loss in report.losses if loss.kind == "vo"]
    assert model.get_parameter("0.bias").shape[1] == sum(n > 0 for n in left) < 4
    assert model.verify(X).within(1e-4)


def test_a_head_that_has_gone_does_not_come_back() -> None:
    model = compiled(Attention(), Attention())
    for _ in range(2):
        model.zero_grad()
        model(X).square().sum().backward()
        model.sparsify(ratio=0.6, remove_heads=True)
    assert model.verify(X).within(1e-4)


@pytest.mark.parametrize("allocation", ["ecospa", "uniform", "global"])
def test_the_smaller_model_equals_the_masked_one(allocation: str) -> None:
    model = compiled(Attention(), Attention())
    model(X).square().sum().backward()
    model.sparsify(ratio=0.85, remove_heads=True, allocation=allocation)
    assert model.verify(X).within(1e-4)
