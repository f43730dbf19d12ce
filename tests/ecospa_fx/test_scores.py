"""Unit scores: Eq. 9 by hand and extended, the others, and the registry."""

import numpy as np
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import GradientError, ScoreError
from ecospa_fx.fisher import gradient_statistics
from ecospa_fx.passes.score import score
from ecospa_fx.scores import (
    ScoreContext,
    find_score,
    register_score,
    registered_scores,
    unregister_score,
)


def pair() -> CompiledModel:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.5], [3.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [1.0, 0.0, -1.0]]))
    return ecospa_fx.compile(model, args=(torch.randn(4, 2),))


def context(model: CompiledModel, **more: object) -> ScoreContext:
    return ScoreContext(model.couplings, model.removal, dict(model.named_parameters()), **more)  # type: ignore[arg-type]


def units(model: CompiledModel, name: str, **more: object) -> np.ndarray:
    couple = model.couplings.couples[0]
    return score(name, context(model, **more))[couple.units]


def test_eq9_by_hand() -> None:
    products = np.array([3.0 * 2.0, 1.0 * 2.0, 3.0 * 2.0])
    assert units(pair(), "l1_product") == pytest.approx(products / products.sum())


def test_eq9_of_gate_up_and_down_is_a_product_of_three() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = (nn.Linear(*s) for s in ((3, 5), (3, 5), (5, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

    model = ecospa_fx.compile(Gated(), args=(torch.randn(4, 3),))
    gate, up, down = (model.get_parameter(f"{n}.weight").detach().abs() for n in ("gate", "up", "down"))
    product = (gate.sum(1) * up.sum(1) * down.sum(0)).double().numpy()
    assert units(model, "l1_product") == pytest.approx(product / product.sum(), rel=1e-5)


def test_eq9_adds_up_what_a_unit_holds_of_one_axis() -> None:
    """A rotary pair of a KV group with two query heads: 4 rows of q times 2 rows of k."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=23,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        use_cache=False,
    )
    tokens = torch.randint(23, (2, 7))
    model = ecospa_fx.compile(LlamaForCausalLM(config), kwargs={"input_ids": tokens})
    q, k = (
        model.get_parameter(f"model.layers.0.self_attn.{n}_proj.weight").detach().double().abs().sum(1)
        for n in "qk"
    )
    rows = q.view(2, 2, 2, 3).sum((1, 2)) * k.view(2, 2, 3).sum(1)  # group, head, half, pair
    found = score("l1_product", context(model))
    for head in range(2):
        couple = model.couplings[f"model.layers.0.self_attn.qk[{head}]"]
        assert found[couple.units] == pytest.approx((rows[head] / rows[head].sum()).numpy(), rel=1e-5)


def test_eq9_counts_only_what_is_left() -> None:
    model = pair()
    model.sparsify(
        {n: torch.ones_like(p) for n, p in model.named_parameters()}, ratio=0.3, score="l1_product"
    )
    kept = model.couplings.couples[0].units[[0, 2]]
    assert score("l1_product", context(model))[kept] == pytest.approx([0.5, 0.5])


def test_eq9_of_a_couple_of_zeros_is_zero() -> None:
    model = pair()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert units(model, "l1_product") == pytest.approx([0, 0, 0])


def test_magnitude_by_hand() -> None:
    assert units(pair(), "magnitude") == pytest.approx(np.sqrt([5 + 2, 0.5 + 4, 9 + 2]))


def test_random_follows_its_generator() -> None:
    first, again, other = (units(pair(), "random", generator=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == pytest.approx(again)
    assert first != pytest.approx(other)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradient_scores_are_largest_where_removal_costs_most(name: str) -> None:
    """Loss = sum of squares of the output: the unit that feeds it most matters most."""
    model = pair()
    with torch.no_grad():
        model.get_parameter("2.weight").copy_(torch.tensor([[0.0, 0.1, 5.0], [0.0, 0.1, 5.0]]))
    model(torch.ones(1, 2)).square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    statistics = gradient_statistics(
        model.couplings, model.removal, dict(model.named_parameters()), [gradients]
    )
    found = units(model, name, gradients=statistics)
    assert np.argsort(found).tolist() == [0, 1, 2]


def test_scores_can_be_listed() -> None:
    assert {
        "fisher",
        "l1_product",
        "magnitude",
        "taylor",
        "random",
        "activation",
    } <= registered_scores().keys()


def test_a_score_of_ones_own() -> None:
    model = pair()
    values = score(lambda c: np.arange(c.size, dtype=np.float64), context(model))
    assert values[model.couplings.couples[0].units].tolist() == model.couplings.couples[0].units.tolist()


def test_doubles_are_refused() -> None:
    with pytest.raises(ScoreError, match="'random' already"):
        register_score("random")(lambda c: np.zeros(c.size))


def test_register_and_unregister() -> None:
    register_score("mine")(lambda c: np.zeros(c.size))
    assert find_score("mine").name == "mine"
    unregister_score("mine")
    assert "mine" not in registered_scores()


def test_unknown_scores_get_a_hint() -> None:
    with pytest.raises(ScoreError, match="did you mean 'magnitude'"):
        find_score("magnitud")


def test_missing_gradients_and_missing_calibration_are_told_apart() -> None:
    with pytest.raises(GradientError, match="call backward"):
        units(pair(), "taylor")
    with pytest.raises(ScoreError, match="calibration"):
        units(pair(), "activation")


def test_malformed_results_are_refused() -> None:
    model = pair()
    with pytest.raises(ScoreError, match="gave shape"):
        score(lambda c: np.zeros(3), context(model))
    with pytest.raises(ScoreError, match=r"NaN or infinite in ffn \(3 units\)"):
        score(lambda c: np.full(c.size, np.nan), context(model))
