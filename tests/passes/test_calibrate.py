"""Energies of units, by hand: where a weight sums over them, and at the dot product of queries and keys."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

import ecospa_fx
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.passes.score import score
from ecospa_fx.planning import calibrated
from ecospa_fx.scores import ScoreContext
from tests.models.experts import Einsum, Experts, Gathered, Interleaved, Selected

X = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.gate(x)) * self.up(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.hidden(x))


class Attention(nn.Module):
    """Two query heads for each of two KV heads, by SDPA's grouping, by expansion or step by step."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.o = nn.Linear(6, 12), nn.Linear(12, 6)
        self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = self.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.k, self.v))
        return q, k, v

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.parts(x)
        if self.how == "grouped":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1) @ v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.mixed(x).transpose(1, 2).flatten(-2))


def measured(model: CompiledModel, *batches: torch.Tensor) -> ActivationStatistics:
    return calibrated(model, list(batches))


def activation(model: CompiledModel, seen: ActivationStatistics) -> np.ndarray:
    parameters = dict(model.named_parameters())
    return score("activation", ScoreContext(model.couplings, model.removal, parameters, activations=seen))


def test_hidden_units_by_hand() -> None:
    block = Gated().double()
    model = ecospa_fx.compile(block, args=(X,))
    energy = block.hidden(X).square().mean((0, 1)) * block.down.weight.square().sum(0)
    units = model.couplings.couples[0].units
    assert activation(model, measured(model, X))[units] == pytest.approx(energy.sqrt().detach().numpy())


def test_batches_are_averaged() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    both, first, second = (measured(model, *b) for b in ((X, 2 * X), (X,), (2 * X,)))
    assert both.consumed == pytest.approx((first.consumed + second.consumed) / 2)


@pytest.mark.parametrize("how", ["grouped", "sdpa", "by hand"])
def test_heads_by_hand(how: str) -> None:
    block = Attention(how).double()
    model = ecospa_fx.compile(block, args=(X,))
    q, k, _ = block.parts(X)
    left = q.square().mean((0, 2)).unflatten(0, (2, 2)).sum(1)  # group, dim
    right = k.square().mean((0, 2)) * (1 if how == "grouped" else 2)  # repeated for both query heads
    columns = block.o.weight.square().sum(0).view(4, 3)
    out = (block.mixed(X).square().mean((0, 2)) * columns).unflatten(0, (2, 2)).sum(1)
    found = activation(model, measured(model, X))
    for head in range(2):
        dots = (left[head] * right[head]).sqrt().detach().numpy()
        assert found[model.couplings[f"qk[{head}]"].units] == pytest.approx(dots)
        assert found[model.couplings[f"vo[{head}]"].units] == pytest.approx(out[head].sqrt().detach().numpy())


def test_what_is_gone_is_not_measured() -> None:
    block = Gated().double()
    model = ecospa_fx.compile(block, args=(X,))
    energy = (
        (block.hidden(X).square().mean((0, 1)) * block.down.weight.square().sum(0)).sqrt().detach().numpy()
    )
    model.sparsify({n: torch.ones_like(p) for n, p in model.named_parameters()}, ratio=0.4)
    couple = model.couplings.couples[0]
    kept = model.kept_mask("up.weight")[:, 0].numpy()
    found = activation(model, measured(model, X))[couple.units]
    assert found[kept] == pytest.approx(energy[kept])
    assert not found[~kept].any()


def test_energies_of_another_kind_of_call_count_for_the_same_units() -> None:
    """A call with a mask is another capture, whose components have other numbers."""

    class Masked(Gated):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            y = super().forward(x)
            return y if mask is None else torch.cumsum(y, 1) * mask

    model = ecospa_fx.compile(Masked().double(), args=(X,))
    plain = measured(model, X)
    masked = calibrated(model, [(X, torch.ones(3, 7, 1, dtype=torch.float64))])
    assert masked.consumed == pytest.approx(plain.consumed)


def test_couples_that_no_product_was_seen_for_fall_back_on_magnitude() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    none = np.zeros(len(model.couplings.couple_of))
    parameters = dict(model.named_parameters())
    context = ScoreContext(
        model.couplings, model.removal, parameters, activations=ActivationStatistics(none, none, none)
    )
    assert score("activation", context) == pytest.approx(score("magnitude", context))


def test_calibration_through_the_front_door() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    plan = model.plan(ratio=0.3, score="activation", calibration=[X, (X,), {"x": X}], allocation="uniform")
    expected = activation(model, measured(model, X))[model.couplings.couples[0].units]
    gone = np.setdiff1d(np.arange(9), np.flatnonzero(plan.removal.kept("up.weight", 0, 9)))
    assert set(gone) == set(np.argsort(expected)[: len(gone)])


@pytest.mark.parametrize("kind", [Gathered, Selected, Einsum, Interleaved])
def test_each_expert_s_units_by_the_tokens_that_it_sees(kind: type[Experts]) -> None:
    torch.manual_seed(0)
    block, x = kind().double(), torch.randn(11, 12, dtype=torch.float64)
    if not isinstance(block, Gathered):
        torch.nn.init.zeros_(block.up_bias)
    model = ecospa_fx.compile(block, args=(x,))
    _, chosen = block.chosen(x)
    for expert, couple in enumerate(c for c in model.couplings.couples if c.kind == "ffn"):
        h = block.gated(F.linear(x, block.up[expert], block.up_bias[expert]))
        seen = (chosen == expert).any(1).unsqueeze(1)
        energy = (h * seen).square().sum(0) / chosen.numel() * block.down[expert].square().sum(0)
        found = measured(model, x).consumed[couple.units]
        assert found == pytest.approx(energy.detach().numpy(), rel=1e-5)


def test_experts_of_a_grouped_product() -> None:
    config = MixtralConfig(
        vocab_size=30, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    both = []
    for spelling in ("grouped_mm", "batched_mm"):
        torch.manual_seed(0)
        block = MixtralForCausalLM(config).eval()
        block.set_experts_implementation(spelling)
        model = ecospa_fx.compile(block, kwargs={"input_ids": torch.arange(20).view(2, 10)})
        both.append(calibrated(model, [{"input_ids": torch.arange(20).view(2, 10)}]).consumed)
    assert both[0] == pytest.approx(both[1], rel=1e-4)
    assert (both[0] > 0).sum() > 48
