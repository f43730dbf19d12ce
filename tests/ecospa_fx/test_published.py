"""Scores of other papers, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import GradientError, ScoreError
from ecospa_fx.fisher import gradient_statistics
from ecospa_fx.passes.score import score
from ecospa_fx.scores import ScoreContext
from tests.passes.test_calibrate import Attention

X = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Pair(nn.Module):
    """Two blocks of hidden units of different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.wide, self.narrow = nn.Linear(6, 11), nn.Linear(11, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(F.silu(self.up(x)))
        return x + 100 * self.narrow(F.silu(self.wide(x)))


def compiled(block: nn.Module | None = None) -> CompiledModel:
    torch.manual_seed(0)
    return ecospa_fx.compile((block or Pair()).double(), args=(X,))


def context(model: CompiledModel, **more: object) -> ScoreContext:
    parameters = dict(model.named_parameters())
    return ScoreContext(model.couplings, model.removal, parameters, **more)  # type: ignore[arg-type]


def hidden(model: CompiledModel) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Units of each block, what they put out, and the weight that sums over it."""
    block = model.source
    first = F.silu(block.up(X))
    second = F.silu(block.wide(X + block.down(first)))
    found = []
    for name, x in (("down", first), ("narrow", second)):
        axis = next(a for a in model.couplings.axes if a.parameter == f"{name}.weight" and a.role == "in")
        found.append((axis.components, x.detach().flatten(0, 1), getattr(block, name).weight.detach()))
    return found


def test_llm_pruner_is_the_sum_of_first_order_terms() -> None:
    model = compiled()
    model(X).square().mean().backward()
    parameters = dict(model.named_parameters())
    gradients = {n: p.grad for n, p in parameters.items()}
    seen = gradient_statistics(model.couplings, model.removal, parameters, [gradients], elements=True)  # type: ignore[list-item]
    found = score("llm_pruner", context(model, gradients=seen))
    terms = {n: (p * p.grad).abs().detach() for n, p in parameters.items() if p.grad is not None}
    expected = terms["up.weight"].sum(1) + terms["up.bias"] + terms["down.weight"].sum(0)
    assert found[hidden(model)[0][0]] == pytest.approx(expected.numpy())


def test_wanda_sp_is_the_norm_of_inputs_times_columns() -> None:
    model = compiled()
    found = score("wanda_sp", context(model, activations=model.calibrate([X])))
    for units, x, w in hidden(model):
        assert found[units] == pytest.approx((x.square().mean(0).sqrt() * w.abs().sum(0)).numpy())


def test_flap_is_the_variance_standardised_within_a_layer() -> None:
    model = compiled()
    found = score("flap", context(model, activations=model.calibrate([X])))
    shifts = []
    for units, x, w in hidden(model):
        raw = x.var(0, correction=0) * w.square().sum(0)
        standard = (raw - raw.mean()) / raw.std(correction=0)
        shifts.append(found[units] - standard.numpy())
        assert shifts[-1] == pytest.approx(shifts[-1][0])
    assert shifts[0][0] == pytest.approx(shifts[1][0])
    assert found.min() == 0


def test_flap_after_a_removal_standardises_what_is_left() -> None:
    model = compiled()
    model.sparsify(ratio=0.3, score="magnitude", allocation="uniform")
    found = score("flap", context(model, activations=model.calibrate([X])))
    units = model.couplings.couples[0].units
    kept = units[model.kept_mask(model.couplings.couples[0].weights[0].parameter).any(1).numpy()]
    assert found[kept].std() == pytest.approx(1)


@pytest.mark.parametrize("name", ["wanda_sp", "flap"])
def test_queries_and_keys_score_by_their_product(name: str) -> None:
    model = compiled(Attention("sdpa"))
    seen = model.calibrate([X])
    found, dots = (score(n, context(model, activations=seen)) for n in (name, "activation"))
    units = np.concatenate([c.units for c in model.couplings.couples if c.kind == "qk"])
    assert np.argsort(found[units], kind="stable").tolist() == np.argsort(dots[units], kind="stable").tolist()


def test_llm_pruner_without_its_statistics() -> None:
    model = compiled()
    model(X).square().mean().backward()
    fisher = ecospa_fx.FisherAccumulator(model)
    fisher.update()
    with pytest.raises(ScoreError, match=r"'llm_pruner' needs .*\(compiled, elements=True\)"):
        model.sparsify(fisher, 0.3, score="llm_pruner")


def test_sums_that_were_saved_without_elements() -> None:
    model = compiled()
    model(X).square().mean().backward()
    plain, more = ecospa_fx.FisherAccumulator(model), ecospa_fx.FisherAccumulator(model, elements=True)
    plain.update()
    with pytest.raises(GradientError, match="elements=False"):
        more.load_state_dict(plain.state_dict())


def test_llm_pruner_in_a_schedule() -> None:
    model = compiled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = ecospa_fx.SparsitySchedule(
        model, optimizer, target_ratio=0.3, every=1, end=2, score="llm_pruner"
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert schedule.reports
    assert schedule.fisher.elements


@pytest.mark.parametrize("name", ["wanda_sp", "flap"])
def test_statistics_without_what_it_needs(name: str) -> None:
    model = compiled()
    seen = model.calibrate([X])
    old = ActivationStatistics(seen.consumed, seen.left, seen.right)
    with pytest.raises(ScoreError, match=rf"'{name}' needs .*compiled\.calibrate\(batches\)"):
        score(name, context(model, activations=old))


@pytest.mark.parametrize("name", ["wanda_sp", "flap", "llm_pruner"])
def test_through_the_front_door(name: str) -> None:
    model = compiled()
    model(X).square().mean().backward()
    report = model.sparsify(ratio=0.3, score=name, allocation="global", calibration=[X])
    assert report.params_after < report.params_before
    assert model.verify().output < 1e-9
