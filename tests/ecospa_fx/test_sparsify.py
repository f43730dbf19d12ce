"""What may be asked of ``sparsify``: gradients in every form, targets, several optimizers; its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, FisherAccumulator
from tests.models.config import Config
from tests.models.snapshot import identical, untouched
from tests.models.training import size
from tests.models.transformer import build, tokens

C = Config(kv_heads=2, group=2, rope="half", activation="swiglu", bias=True)
X = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HELD = 714  # 0.weight, 0.bias and 2.weight
UNIT = 21  # a row, its bias and a column


def ffn() -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 34), nn.GELU(), nn.Linear(34, 10)).double()
    return ecospa_fx.compile(model, args=(X,))


def sample(compiled: CompiledModel, x: Tensor = X) -> dict[str, Tensor]:
    names, parameters = zip(*compiled.named_parameters(), strict=True)
    found = torch.autograd.grad(compiled(x).square().sum(), parameters)
    return dict(zip(names, found, strict=True))


def backward(compiled: CompiledModel) -> None:
    compiled(X).square().sum().backward()


def generator(compiled: CompiledModel) -> Iterator[dict[str, Tensor]]:
    yield sample(compiled)


def accumulator(compiled: CompiledModel) -> FisherAccumulator:
    fisher = FisherAccumulator(compiled)
    fisher.update(sample(compiled))
    return fisher


FORMS: dict[str, Callable[[CompiledModel], Any]] = {
    "mapping": sample,
    "list": lambda c: [sample(c), sample(c)],
    "generator": generator,
    "accumulator": accumulator,
    "own .grad": backward,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients_in_every_form_choose_the_same(form: Callable[[CompiledModel], Any]) -> None:
    compiled, other = ffn(), ffn()
    other.sparsify(sample(other), ratio=0.5, score="taylor")
    compiled.sparsify(form(compiled), ratio=0.5, score="taylor")
    assert size(compiled) < size(ffn())
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))


def test_all_samples_count() -> None:
    """The least unit of the mean of two samples is the least of neither."""
    compiled = ffn()
    first, second = ({n: torch.ones_like(p) for n, p in compiled.named_parameters()} for _ in range(2))
    for one, strong in ((first, 3), (second, 4)):
        for g in (one["0.weight"], one["0.bias"], one["2.weight"].T):
            g[3:5] *= 0.1
            g[strong] *= 100
            g[5] *= 0.2
    with torch.no_grad():
        for p in compiled.parameters():
            p.fill_(1)
    compiled.sparsify([first, second], ratio=UNIT / HELD)
    assert (~compiled.kept_mask("0.bias")).nonzero().flatten().tolist() == [5]


def test_frozen_parameters_need_no_gradient() -> None:
    compiled = ffn()
    compiled.get_parameter("0.bias").requires_grad_(False)
    backward(compiled)
    compiled.sparsify(ratio=0.5)
    assert compiled.get_parameter("0.bias").shape == (17,)
    assert not compiled.get_parameter("0.bias").requires_grad


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.31, 0.5, 0.77, 0.97])
def test_a_ratio_is_met_to_one_unit(ratio: float) -> None:
    compiled = ffn()
    report = compiled.sparsify(sample(compiled), ratio=ratio)
    assert (report.params_before, report.coupled_before) == (HELD + 10, HELD)
    assert report.params_after == size(compiled)
    assert report.coupled_after == report.params_after - 10
    assert 0 <= (1 - ratio) * HELD - report.coupled_after < UNIT
    assert [(x.couple, x.before, x.after) for x in report.losses] == [
        ("ffn", 34, report.coupled_after // UNIT)
    ]


@pytest.mark.parametrize("target", [31, 52, 53, 500, 723, 724, 10_000])
def test_a_size_is_met_to_one_unit(target: int) -> None:
    compiled = ffn()
    report = compiled.sparsify(sample(compiled), target_params=target)
    assert report.params_after == size(compiled) <= target
    assert report.params_after > min(target, 724) - UNIT


def test_heads_of_a_layer_go_together() -> None:
    compiled = ecospa_fx.compile(build(C), args=tokens(C))
    before = size(compiled)
    gradients = {n: torch.randn_like(p) for n, p in compiled.named_parameters()}
    report = compiled.sparsify(gradients, ratio=0.37)
    kept = {x.couple: x.after for x in report.losses}
    assert len({n for c, n in kept.items() if ".qk[" in c}) == 1
    assert len({n for c, n in kept.items() if ".vo[" in c}) == 1
    assert before - size(compiled) == report.coupled_before - report.coupled_after
    assert report.coupled_after <= 0.63 * report.coupled_before


def test_a_parameter_that_the_graph_does_not_read_counts() -> None:
    class Idle(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](torch.relu(self[0](x)))

    model = Idle(nn.Linear(10, 34), nn.Linear(3, 5), nn.Linear(34, 10)).double()
    compiled = ecospa_fx.compile(model, args=(X,))
    backward(compiled)
    report = compiled.sparsify(target_params=444)
    assert report.params_before == 744
    assert report.params_after == size(compiled) == 744 - 15 * UNIT


def test_the_report_as_text_and_data() -> None:
    compiled = ffn()
    report = compiled.sparsify(sample(compiled), ratio=0.5)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["params_after"] == 367
    assert data["losses"] == [{"couple": "ffn", "kind": "ffn", "dense": 34, "before": 34, "after": 17}]
    assert "724 ->              367  (-49.31 %)" in str(report)


def test_two_rounds_count_from_what_is_left() -> None:
    compiled = ffn()
    for _ in range(2):
        report = compiled.sparsify(sample(compiled), ratio=0.5)
    loss = report.losses[0]
    assert (loss.dense, loss.before, loss.after) == (34, 17, 8)
    assert (report.coupled_before, report.coupled_after) == (17 * UNIT, 8 * UNIT)


def test_ratio_zero_changes_nothing() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    backward(compiled)
    optimizer.step()
    with untouched(compiled, optimizer):
        report = compiled.sparsify(ratio=0, optimizer=optimizer)
    assert report.params_after == report.params_before


def test_several_optimizers_follow() -> None:
    compiled = ffn()
    up, down = (compiled.get_submodule(n) for n in ("0", "2"))
    optimizers = [SGD(up.parameters(), 0.1, momentum=0.9), AdamW(down.parameters(), 0.1)]
    for step in range(3):
        if step == 2:
            compiled.sparsify(ratio=0.5, optimizer=(o for o in optimizers))
            assert optimizers[0].state[up.weight]["momentum_buffer"].shape == (17, 10)
            assert optimizers[1].state[down.weight]["exp_avg"].shape == (10, 17)
        backward(compiled)
        for optimizer in optimizers:
            optimizer.step()


def test_plan_changes_nothing_and_takes_settings() -> None:
    compiled = ffn()
    gradients = sample(compiled)
    with untouched(compiled):
        plan = compiled.plan(gradients, 0.5, round_to=8, score="magnitude")
    assert (plan.score, plan.settings.round_to, plan.losses[0].after) == ("magnitude", 8, 16)


def test_scores_may_be_functions() -> None:
    compiled = ffn()
    compiled.sparsify(
        sample(compiled), 0.5, score=lambda context: -torch.arange(context.size).double().numpy()
    )
    kept = compiled.kept_mask("0.bias").nonzero().flatten().tolist()
    assert kept == list(range(17))


def test_apply_is_still_that_of_a_module() -> None:
    compiled = ffn()
    seen: list[nn.Module] = []
    compiled.apply(seen.append)
    assert compiled.get_submodule("0") in seen
