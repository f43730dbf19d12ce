"""Parameters become smaller in place, and optimizers go on as if the removed entries had never moved."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.cut import ParameterCut
from ecospa_fx.passes.remap import prepare
from tests.models.cutting import (
    ENTRYWISE,
    HIDDEN,
    MATRIXWISE,
    ON_GPU,
    UNITS,
    WIDTH,
    Build,
    Network,
    cut,
    cuts_of,
    everything,
    mask,
    train,
)

o = torch.optim


def assert_follows_the_masked_model(build: Build, device: str) -> None:
    model = Network().to(device)
    optimizer = build(list(model.parameters()))
    train(model, optimizer, 5)
    dense, reference = copy.deepcopy((model, optimizer))
    masks = {name: each.kept.to(device) for name, each in cuts_of().items()}
    mask(dense, masks)

    cut(model, optimizer).commit()
    train(model, optimizer, 10)
    train(dense, reference, 10, masks)

    for name, param in model.named_parameters():
        expected, each = dense.get_parameter(name), cuts_of().get(name)
        follow = each.apply if each else torch.Tensor.clone
        torch.testing.assert_close(param, follow(expected), rtol=0, atol=1e-12)
        for key, value in optimizer.state[param].items():
            former = reference.state[expected][key]
            wanted = follow(former) if former.shape == expected.shape else former
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", ENTRYWISE)
def test_steps_after_the_cut_are_the_masked_model_s(build: Build) -> None:
    assert_follows_the_masked_model(build, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="capturable and most fused optimizers need a GPU")
@pytest.mark.parametrize("build", ON_GPU)
def test_steps_after_the_cut_are_the_masked_model_s_on_a_gpu(build: Build) -> None:
    assert_follows_the_masked_model(build, "cuda")


@pytest.mark.parametrize("build", MATRIXWISE)
def test_factored_optimizers_go_on_learning(build: Build) -> None:
    model = Network()
    optimizer = build(list(model.parameters()))
    train(model, optimizer, 5)
    cut(model, optimizer).commit()
    losses = train(model, optimizer, 60)
    assert losses[-1] < 0.8 * losses[0]
    assert all(tensor.isfinite().all() for tensor in everything(model, optimizer))


def test_muon_goes_on_learning() -> None:
    model = Network()
    muon = o.Muon([model.up.weight, model.down.weight], lr=0.02)
    adamw = o.AdamW([model.up.bias, model.down.bias], lr=0.01)

    def both(steps: int) -> list[float]:
        muon.zero_grad()
        return [
            train(model, adamw, 1)[0]
            for _ in range(steps)
            if muon.step() is None and muon.zero_grad() is None
        ]

    both(5)
    cut(model, muon, adamw).commit()
    assert muon.state[model.up.weight]["momentum_buffer"].shape == (4, WIDTH)
    losses = both(60)
    assert losses[-1] < 0.8 * losses[0]
    assert all(tensor.isfinite().all() for tensor in everything(model, muon, adamw))


def test_sparse_adam_follows() -> None:
    columns = torch.tensor([True, False, True, True])
    kept = columns.expand(6, 4)

    def step(table: nn.Embedding, optimizer: Optimizer, seen: torch.Tensor) -> None:
        optimizer.zero_grad()
        table(torch.tensor([1, 4, 1])).mul(torch.arange(4.0, dtype=torch.float64)[seen]).pow(
            2
        ).sum().backward()
        optimizer.step()

    table = nn.Embedding(6, 4, sparse=True, dtype=torch.float64)
    optimizer = o.SparseAdam(table.parameters(), lr=0.1)
    step(table, optimizer, columns | True)
    dense, reference = copy.deepcopy((table, optimizer))
    prepare({"weight": table.weight}, {"weight": ParameterCut(kept, (6, 3))}, [optimizer]).commit()
    assert table.weight.grad.is_sparse
    assert table.weight.grad.shape == (6, 3)
    for _ in range(3):
        step(table, optimizer, columns)
        step(dense, reference, columns | True)
    torch.testing.assert_close(table.weight, dense.weight[:, columns], rtol=0, atol=1e-12)


# What the Parameters are and hold.


def test_identity_groups_schedule_and_gradient() -> None:
    model = Network()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = o.Adam(model.parameters(), lr=0.1)
    schedule = o.lr_scheduler.StepLR(optimizer, step_size=1)
    train(model, optimizer, 2)
    before, gradients = list(model.parameters()), {n: p.grad.clone() for n, p in model.named_parameters()}
    cut(model, optimizer).commit()
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True))
    assert set(optimizer.state) == set(before)
    assert model.up.weight.shape == (4, WIDTH)
    assert torch.equal(model.up.weight.grad, gradients["up.weight"][UNITS])
    assert torch.equal(model.down.bias.grad, gradients["down.bias"])
    assert average.module.up.weight.shape == (HIDDEN, WIDTH)
    train(model, optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    o.Adam(model.parameters()).load_state_dict(optimizer.state_dict())


def test_a_parameter_in_two_optimizers() -> None:
    model = Network()
    one, two = o.Adam(model.parameters()), o.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, one, 1)
    train(model, two, 1)
    cut(model, one, two).commit()
    assert one.state[model.up.bias]["exp_avg"].shape == (4,)
    assert two.state[model.up.bias]["momentum_buffer"].shape == (4,)


def test_graph_and_hooks_from_before() -> None:
    model, seen = Network(), []
    twin = copy.deepcopy(model)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    model.up.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    model.up.weight.register_post_accumulate_grad_hook(lambda param: seen.append(param.grad.shape))
    loss = model(x).pow(2).sum()
    cut(model).commit()
    loss.backward()
    twin(x).pow(2).sum().backward()
    assert seen == [(4, WIDTH)] * 2
    assert torch.equal(model.up.weight.grad, twin.up.weight.grad[UNITS])
    assert torch.equal(model.down.weight.grad, twin.down.weight.grad[:, UNITS])
    assert torch.equal(model.down.bias.grad, twin.down.bias.grad)


def test_tied_parameter_is_cut_once() -> None:
    param = nn.Parameter(torch.arange(4.0))
    half = ParameterCut(torch.tensor([True, False, True, False]), (2,))
    prepare({"a": param, "b": param}, {"a": half, "b": half}).commit()
    assert torch.equal(param, torch.tensor([0.0, 2.0]))


def test_frozen_parameter_needs_no_optimizer() -> None:
    model = Network()
    model.down.weight.requires_grad_(False)
    optimizer = o.SGD([model.up.weight, model.up.bias], lr=0.1)
    cut(model, optimizer).commit()
    assert model.down.weight.shape == (WIDTH, 4)
    assert not model.down.weight.requires_grad


def test_inside_inference_mode() -> None:
    model = Network()
    with torch.inference_mode():
        cut(model).commit()
    model(torch.randn(3, WIDTH, dtype=torch.float64)).sum().backward()
    assert model.up.weight.grad.shape == (4, WIDTH)


def test_on_the_meta_device() -> None:
    model = Network().to("meta")
    optimizer = o.Adam(model.parameters())
    optimizer.state[model.up.bias]["exp_avg"] = torch.zeros(HIDDEN, device="meta")
    transfer = cut(model, optimizer)
    transfer.commit()
    assert model.up.weight.is_meta
    assert model.up.weight.shape == (4, WIDTH)
    transfer.rollback()
    assert model.up.weight.shape == (HIDDEN, WIDTH)


def test_nothing_to_do() -> None:
    model = Network()
    whole = {
        name: ParameterCut(torch.ones_like(p, dtype=torch.bool), tuple(p.shape))
        for name, p in model.named_parameters()
    }
    assert not prepare(dict(model.named_parameters()), whole).changes
    assert not prepare(dict(model.named_parameters()), {}).changes
    assert cut(model).changes


def test_gradients_follow_a_later_change_of_dtype() -> None:
    layer = torch.nn.Linear(3, 4)
    kept = torch.tensor([[True] * 3, [False] * 3, [True] * 3, [True] * 3])
    prepare({"weight": layer.weight}, {"weight": ParameterCut(kept, (3, 3))}, []).commit()
    layer.double()
    (gradient,) = torch.autograd.grad((layer.weight / 3).sum(), layer.weight)
    assert gradient.dtype == torch.float64
    assert gradient[0, 0].item() == 1 / 3
