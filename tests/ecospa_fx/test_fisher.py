"""Eq. 6: by hand on a couple of two matrices, extended to more members, and streamed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import GradientError
from ecospa_fx.fisher import FisherSums, gradient_statistics
from tests.models.gated import Gated, compiled, mean_square, random_gradients, statistics


@pytest.fixture
def pair() -> CompiledModel:
    return compiled(nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)))


@pytest.fixture
def gated() -> CompiledModel:
    return compiled(Gated())


def test_eq6_of_two_matrices_by_hand(pair: CompiledModel) -> None:
    first = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]], dtype=torch.float64)
    second = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 2]], dtype=torch.float64)
    found = statistics(pair, {"0.weight": first, "2.weight": second})
    assert found.importance == pytest.approx([0.5 * (17 / 12 + 34 / 8)])
    assert found.samples == 1


def test_eq6_averages_squares_over_the_samples(pair: CompiledModel) -> None:
    samples = [random_gradients(pair, seed) for seed in range(3)]
    assert statistics(pair, *samples).importance == pytest.approx(
        [np.mean([mean_square(pair, s) for s in samples])]
    )


def test_eq6_of_three_members_leaves_biases_out(gated: CompiledModel) -> None:
    gradients = random_gradients(gated)
    assert statistics(gated, gradients).importance == pytest.approx([mean_square(gated, gradients)])


def test_a_head_counts_only_its_own_rows() -> None:
    from torch.nn.functional import scaled_dot_product_attention as attention

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(6, 6, bias=False) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.o(attention(q, k, v).transpose(1, 2).flatten(-2))

    model = ecospa_fx.compile(Heads().double(), args=(torch.randn(2, 7, 6, dtype=torch.float64),))
    gradients = random_gradients(model)
    importance = statistics(model, gradients).importance
    expected = {
        f"{kind}[{head}]": np.mean([part[rows].square().mean() for part in parts])
        for head, rows in enumerate((slice(0, 3), slice(3, 6)))
        for kind, parts in {
            "qk": (gradients["q.weight"], gradients["k.weight"]),
            "vo": (gradients["v.weight"], gradients["o.weight"].T),
        }.items()
    }
    found = {c.name: i for c, i in zip(model.couplings, importance, strict=True)}
    assert found == pytest.approx(expected)


def test_unit_statistics_by_hand(pair: CompiledModel) -> None:
    gradients = random_gradients(pair)
    w1, w2 = (p.detach() for _, p in pair.named_parameters())
    a, b = (w1 * gradients["0.weight"]), (w2 * gradients["2.weight"]).T
    found = statistics(pair, gradients)
    units = pair.couplings.couples[0].units
    assert found.taylor is not None
    assert found.fisher is not None
    assert found.taylor[units] == pytest.approx(((a.sum(1).abs() + b.sum(1).abs()) / 2).numpy())
    assert found.fisher[units] == pytest.approx((a.square().sum(1) + b.square().sum(1)).numpy())


def test_frozen_members_are_left_out(pair: CompiledModel) -> None:
    pair.get_parameter("2.weight").requires_grad_(False)
    gradients = random_gradients(pair)
    del gradients["2.weight"]
    assert statistics(pair, gradients).importance == pytest.approx(
        [float(gradients["0.weight"].square().mean())]
    )


def test_half_precision_is_summed_in_single(pair: CompiledModel) -> None:
    pair.half()
    gradients = {n: torch.full_like(p, 300) for n, p in pair.named_parameters()}  # 300² overflows float16
    assert statistics(pair, gradients).importance == pytest.approx([9e4])


def test_squares_that_overflow_single_precision_are_no_error(pair: CompiledModel) -> None:
    pair.float()
    gradients = {n: torch.full_like(p, 1e25) for n, p in pair.named_parameters()}
    assert statistics(pair, gradients).importance == pytest.approx([1e50])


def test_an_accumulator_keeps_no_gradients(gated: CompiledModel) -> None:
    sums = FisherSums(gated.couplings, gated.removal, units=False)
    sums.add(random_gradients(gated), dict(gated.named_parameters()))
    assert not [v for v in vars(sums).values() if isinstance(v, torch.Tensor)]
    assert sums.result().taylor is None


def test_no_samples_are_an_error(pair: CompiledModel) -> None:
    with pytest.raises(GradientError, match="iterable is empty"):
        statistics(pair)


def spoil(
    change: Callable[[dict[str, torch.Tensor]], None],
) -> Callable[[CompiledModel], dict[str, torch.Tensor]]:
    def build(model: CompiledModel) -> dict[str, torch.Tensor]:
        gradients = random_gradients(model)
        change(gradients)
        return gradients

    return build


def without_up(gradients: dict[str, torch.Tensor]) -> None:
    del gradients["up.weight"]


def wrong_shape(gradients: dict[str, torch.Tensor]) -> None:
    gradients["up.weight"] = gradients["up.weight"].T


def misnamed(gradients: dict[str, torch.Tensor]) -> None:
    gradients["module.up.weight"] = gradients.pop("up.weight")
    gradients["dwon.weight"] = gradients.pop("down.weight")


def no_tensor(gradients: dict[str, torch.Tensor]) -> None:
    gradients["gate.weight"] = 3.0  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (spoil(without_up), ["no gradient for 'up.weight'", "used in the loss"]),
        (spoil(dict.clear), ["no gradient for", "call backward() first"]),
        (spoil(wrong_shape), ["'up.weight' has shape [3, 5], not [5, 3]"]),
        (spoil(misnamed), ["did you mean 'up.weight'?", "did you mean 'down.weight'?", "no gradient for"]),
        (spoil(no_tensor), ["'gate.weight' is a float"]),
    ],
)
def test_bad_gradients_are_named(
    gated: CompiledModel, build: Callable[[CompiledModel], dict[str, torch.Tensor]], words: list[str]
) -> None:
    with pytest.raises(GradientError) as error:
        statistics(gated, build(gated))
    assert all(w in str(error.value) for w in words), error.value


def test_a_model_frozen_throughout_has_no_gradients(gated: CompiledModel) -> None:
    gated.requires_grad_(False)
    with pytest.raises(GradientError, match="none requires one"):
        statistics(gated, {})


def test_a_tied_parameter_may_go_by_any_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))
            self.c.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x))) + self.c(x).sum(-1, keepdim=True) * 0

    model = ecospa_fx.compile(nn.Sequential(nn.Linear(3, 4), Tied()), args=(torch.randn(2, 3),))
    names = dict(model.named_parameters(remove_duplicate=False))
    assert "1.c.weight" in names
    gradients = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    by_first = gradient_statistics(model.couplings, model.removal, names, [gradients])
    gradients["1.c.weight"] = gradients.pop("1.a.weight")
    by_second = gradient_statistics(model.couplings, model.removal, names, [gradients])
    assert by_first.importance == pytest.approx(by_second.importance, nan_ok=True)
