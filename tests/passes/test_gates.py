"""Gates, by hand: the loss's derivative by the gate of one unit at one token."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.errors import ScoreError

X = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Gated(nn.Module):
    """An MLP whose hidden values meet gates, which no parameter of the compiled model is."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        hidden = F.silu(self.up(x))
        return self.down(hidden if gate is None else hidden * gate)


class Attention(nn.Module):
    """Four query heads of two dims over two key heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 8), nn.Linear(8, 6)
        self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(
        self, x: torch.Tensor, of_q: torch.Tensor | None = None, of_v: torch.Tensor | None = None
    ) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.k, self.v))
        q = q if of_q is None else q * of_q
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(-2)
        return self.o(y if of_v is None else y * of_v)


def square(output: torch.Tensor, batch: object) -> torch.Tensor:
    return output.square().mean()


def expected(felt: torch.Tensor) -> np.ndarray:
    """From derivatives ``[tokens, units]`` to ``½ E[a²]`` for a loss that is a mean over tokens."""
    return np.asarray((len(felt) / 2 * felt.square().sum(0)).numpy())


def units(model: ecospa_fx.CompiledModel, parameter: str) -> np.ndarray:
    return next(a.components for a in model.couplings.axes if a.parameter == parameter)


def test_hidden_units() -> None:
    block = Gated().double()
    gate = torch.ones(3, 7, 9, dtype=torch.float64, requires_grad=True)
    (felt,) = torch.autograd.grad(square(block(X, gate), None), gate)
    model = ecospa_fx.compile(block, args=(X,))
    found = model.calibrate([X], square).gates[units(model, "up.bias")]
    assert found == pytest.approx(expected(felt.flatten(0, 1)))


def test_a_group_of_heads_feels_as_one() -> None:
    block = Attention().double()
    ones = torch.ones(3, 7, 8, dtype=torch.float64)
    of_q, of_v = (t.clone().requires_grad_() for t in (ones.unflatten(-1, (4, 2)).transpose(1, 2), ones))
    felt_q, felt_v = torch.autograd.grad(square(block(X, of_q, of_v), None), [of_q, of_v])
    model = ecospa_fx.compile(block, args=(X,))
    found = model.calibrate([X], square).gates
    for name, felt in (("k.bias", felt_q.transpose(1, 2)), ("v.bias", felt_v.unflatten(-1, (4, 2)))):
        groups = felt.unflatten(2, (2, 2)).sum(3).flatten(0, 1).flatten(1)
        assert found[units(model, name)] == pytest.approx(expected(groups)), name


def test_batches_are_averaged_and_nothing_is_left_behind() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    both, one, two = (model.calibrate(b, square).gates for b in ([X, 2 * X], [X], [2 * X]))
    assert both == pytest.approx((one + two) / 2)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_weights_feel_the_same() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    trained = model.calibrate([X], square)
    model.requires_grad_(False)
    frozen = model.calibrate([X], square)
    assert frozen.gates == pytest.approx(trained.gates)
    assert frozen.consumed == pytest.approx(trained.consumed)


def test_after_a_round_only_survivors_are_felt() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    before = units(model, "up.bias")
    model.sparsify(ratio=0.4, score="magnitude", allocation="uniform")
    found = model.calibrate([X], square).gates[before]
    kept = model.kept_mask("up.bias").numpy()
    assert (found[kept] > 0).all()
    assert not found[~kept].any()


def test_statistics_stand_in_for_batches() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    seen = model.calibrate([X], square)
    assert isinstance(seen, ActivationStatistics)
    plan = model.plan(ratio=0.3, score="gate", calibration=seen, allocation="global")
    gone = ~np.isin(np.arange(9), np.flatnonzero(plan.removal.kept("up.bias", 0, 9)))
    scores = seen.gates[units(model, "up.bias")]
    assert scores[gone].max() < scores[~gone].min()


def test_without_a_loss_the_score_says_what_to_do() -> None:
    model = ecospa_fx.compile(Gated().double(), args=(X,))
    with pytest.raises(ScoreError, match=r"compiled\.calibrate\(batches, loss\)"):
        model.plan(ratio=0.3, score="gate", calibration=[X], allocation="uniform")
