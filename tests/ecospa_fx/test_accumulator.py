"""The accumulator: sums over steps, which start anew after a removal."""

import pytest
import torch

from ecospa_fx.accumulator import FisherAccumulator
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import GradientError
from tests.models.gated import Gated, compiled, mean_square, random_gradients, statistics


@pytest.fixture
def gated() -> CompiledModel:
    return compiled(Gated())


def test_an_accumulator_equals_the_plain_function(gated: CompiledModel) -> None:
    accumulator = FisherAccumulator(gated)
    samples = []
    for _ in range(3):
        gated.zero_grad()
        gated(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
        accumulator.update()
        samples.append({n: p.grad.clone() for n, p in gated.named_parameters() if p.grad is not None})
    expected = statistics(gated, *samples)
    assert accumulator.samples == 3
    for name in ("importance", "taylor", "fisher"):
        assert getattr(accumulator.statistics, name) == pytest.approx(getattr(expected, name))


def test_an_accumulator_starts_anew_after_a_removal(gated: CompiledModel) -> None:
    accumulator = FisherAccumulator(gated)
    accumulator.update(random_gradients(gated))
    gated.sparsify(accumulator, ratio=0.4)
    assert accumulator.samples == 0
    with pytest.raises(GradientError, match="model as it is now"):
        _ = accumulator.statistics
    fresh = random_gradients(gated)
    accumulator.update(fresh)
    assert accumulator.samples == 1
    assert accumulator.statistics.importance == pytest.approx([mean_square(gated, fresh)])


def test_reset_forgets(gated: CompiledModel) -> None:
    accumulator = FisherAccumulator(gated)
    accumulator.update(random_gradients(gated))
    accumulator.reset()
    assert accumulator.samples == 0


def test_nothing_is_added_when_a_gradient_is_not_finite(gated: CompiledModel) -> None:
    accumulator = FisherAccumulator(gated)
    accumulator.update(random_gradients(gated))
    before = accumulator.statistics.importance
    bad = random_gradients(gated, 1)
    bad["up.weight"][0, 0], bad["down.weight"][1, 1] = float("nan"), float("inf")
    with pytest.raises(GradientError, match=r"NaN or infinite.*up\.weight.*down\.weight"):
        accumulator.update(bad)
    assert accumulator.statistics.importance == pytest.approx(before)
    assert accumulator.samples == 1
