"""Parameters become smaller in place, and optimizers go on as if the removed entries had never moved."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from transformers.optimization import Adafactor as TransformersAdafactor

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerError, OptimizerStateError, RewriteError
from ecospa_fx.exchange import exchange
from ecospa_fx.passes import remap
from ecospa_fx.passes.remap import Transfer, prepare

Build = Callable[[list[nn.Parameter]], Optimizer]

WIDTH, HIDDEN = 5, 8
UNITS = torch.tensor([True, False, True, True, False, False, True, False])


class Network(nn.Module):
    """Two layers; a hidden unit whose entries are zero adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN, dtype=torch.float64)
        self.down = nn.Linear(HIDDEN, WIDTH, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.tanh(nn.functional.linear(x, self.up.weight, self.up.bias)),
                                    self.down.weight, self.down.bias)  # fmt: skip


def cuts_of(units: torch.Tensor = UNITS) -> dict[str, ParameterCut]:
    left = int(units.sum())
    return {
        "up.weight": ParameterCut(units[:, None].expand(-1, WIDTH), (left, WIDTH)),
        "up.bias": ParameterCut(units, (left,)),
        "down.weight": ParameterCut(units.expand(WIDTH, -1), (WIDTH, left)),
    }


def cut(model: nn.Module, *optimizers: Optimizer) -> Transfer:
    return prepare(dict(model.named_parameters()), cuts_of(), optimizers)


def train(
    model: nn.Module, optimizer: Optimizer, steps: int, masks: dict[str, torch.Tensor] | None = None
) -> list[float]:
    """Steps on fixed data; with ``masks``, entries outside stay zero and have no gradient."""
    generator, losses = torch.Generator().manual_seed(1), []
    device = next(model.parameters()).device
    for _ in range(steps):
        x = torch.randn(16, WIDTH, dtype=torch.float64, generator=generator).to(device)
        optimizer.zero_grad()
        loss = (model(x) - x.flip(-1)).pow(2).mean()
        loss.backward()
        for name, param in model.named_parameters():
            if masks and name in masks:
                param.grad *= masks[name]
        optimizer.step()
        mask(model, masks or {})
        losses.append(loss.item())
    return losses


def mask(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).mul_(kept)


def everything(model: nn.Module, *optimizers: Optimizer) -> list[torch.Tensor]:
    """A copy of all values: parameters, gradients, state."""
    return [tensor.detach().clone() for tensor in _tensors(model, optimizers)]


def _tensors(model: nn.Module, optimizers: tuple[Optimizer, ...]) -> Iterator[torch.Tensor]:
    for param in model.parameters():
        yield param
        if param.grad is not None:
            yield param.grad
        for optimizer in optimizers:
            yield from (
                value for value in optimizer.state.get(param, {}).values() if isinstance(value, torch.Tensor)
            )


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(left, right, strict=True))


def made(cls: type[Optimizer], **options: object) -> object:
    name = "-".join(
        [cls.__name__, *(key if value is True else f"{key}={value}" for key, value in options.items())]
    )
    return pytest.param(lambda params: cls(params, **options), id=name)


o = torch.optim
ENTRYWISE = [
    made(o.SGD, lr=0.1),
    made(o.SGD, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    made(o.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    made(o.SGD, lr=0.1, momentum=0.9, fused=True),
    made(o.Adam, lr=0.01),
    made(o.Adam, lr=0.01, amsgrad=True, maximize=True),
    made(o.Adam, lr=0.01, amsgrad=True, fused=True),
    made(o.Adam, lr=0.01, foreach=True, weight_decay=0.1),
    made(o.AdamW, lr=0.01),
    made(o.AdamW, lr=0.01, amsgrad=True, foreach=True),
    made(o.AdamW, lr=0.01, fused=True),
    made(o.RMSprop, lr=0.01, centered=True, momentum=0.9),
    made(o.RMSprop, lr=0.01, foreach=True),
    made(o.Adagrad, lr=0.1, initial_accumulator_value=0.1, lr_decay=0.1),
    made(o.Adagrad, lr=0.1, fused=True),
    made(o.Adadelta, lr=1.0),
    made(o.Adadelta, lr=1.0, foreach=True),
    made(o.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    made(o.NAdam, lr=0.01, foreach=True),
    made(o.RAdam, lr=0.01),
    made(o.RAdam, lr=0.01, foreach=True),
    made(o.Adamax, lr=0.01),
    made(o.Adamax, lr=0.01, foreach=True),
    made(o.Rprop, lr=0.01),
    made(o.Rprop, lr=0.01, foreach=True),
    made(o.ASGD, lr=0.01, t0=3),
    made(o.ASGD, lr=0.01, foreach=True),
]
ON_GPU = [
    made(cls, lr=0.01, **{way: True})
    for cls in [
        o.Adam, o.AdamW, o.NAdam, o.RAdam, o.Adamax, o.RMSprop, o.Adadelta, o.ASGD, o.Rprop, o.SGD, o.Adagrad
    ]
    for way in ["capturable", "fused", "foreach"]
    if way in cls.__init__.__annotations__
]  # fmt: skip
MATRIXWISE = [
    made(o.Adafactor, lr=0.03),
    made(o.Adafactor, lr=0.03, foreach=True),
    made(TransformersAdafactor, lr=0.01, relative_step=False, scale_parameter=False),
    made(TransformersAdafactor, lr=0.01, relative_step=False, beta1=0.9),
]


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


# The transaction.


def test_prepare_changes_nothing() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    transfer = cut(model, optimizer)
    assert same(everything(model, optimizer), before)
    transfer.rollback()
    assert same(everything(model, optimizer), before)


@pytest.mark.parametrize("build", [*ENTRYWISE, *MATRIXWISE])
def test_rollback_restores_every_bit(build: Build) -> None:
    model, seen = Network(), []
    optimizer = build(list(model.parameters()))
    train(model, optimizer, 2)
    twin, reference = copy.deepcopy((model, optimizer))
    model.up.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    before = everything(model, optimizer)
    transfer = cut(model, optimizer)
    transfer.commit()
    assert not all(a.shape == b.shape for a, b in zip(everything(model, optimizer), before, strict=True))
    transfer.rollback()
    assert same(everything(model, optimizer), before)
    train(model, optimizer, 2)
    train(twin, reference, 2)
    assert same(everything(model, optimizer), everything(twin, reference))
    assert seen == [(HIDDEN, WIDTH)] * 2


def test_rollback_with_a_live_graph() -> None:
    model = Network()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).pow(2).sum(), model.up.weight)[0]
    loss = model(x).pow(2).sum()
    transfer = cut(model)
    transfer.commit()
    between = model(x).pow(2).sum()
    transfer.rollback()
    loss.backward()
    assert torch.equal(model.up.weight.grad, expected)
    model.zero_grad()
    between.backward()
    assert model.up.weight.grad[UNITS].any()
    assert not model.up.weight.grad[~UNITS].any()


def test_commit_after_rollback() -> None:
    model = Network()
    transfer = cut(model)
    expected = model.up.weight[UNITS].detach()
    for _ in range(2):
        transfer.commit()
        assert torch.equal(model.up.weight, expected)
        transfer.rollback()
    transfer.commit()
    with pytest.raises(RewriteError):
        transfer.commit()
    assert torch.equal(model.up.weight, expected)


def test_any_failure_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    optimizer = o.Adam(model.parameters(), amsgrad=True)
    train(model, optimizer, 2)
    before, split = everything(model, optimizer), ParameterCut.split
    failures = 0
    for last in range(100):
        calls = iter(range(last))

        def failing(self: ParameterCut, tensor: torch.Tensor, calls: Iterator[int] = calls) -> object:
            if next(calls, None) is None:
                raise MemoryError
            return split(self, tensor)

        monkeypatch.setattr(ParameterCut, "split", failing)
        try:
            cut(model, optimizer).commit()
        except MemoryError:
            failures += 1
            assert same(everything(model, optimizer), before)
        else:
            break
    assert failures == 3 * (2 + 3)  # three parameters, their gradients, three moments


@pytest.mark.parametrize("done", [True, False])
def test_an_interrupt_changes_nothing(monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    model, seen = Network(), []
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    model.up.bias.register_hook(lambda gradient: seen.append(gradient.shape))
    before = everything(model, optimizer)

    def interrupted(param: nn.Parameter, *args: object) -> object:
        if param is not model.up.bias or param.shape != (HIDDEN,):
            return exchange(param, *args)
        if done:
            exchange(param, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(remap, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut(model, optimizer).commit()
    assert same(everything(model, optimizer), before)
    train(model, optimizer, 1)
    assert seen == [(HIDDEN,)]


def test_a_parameter_that_torch_holds_on_to_changes_nothing() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    reference = torch._C._WeakTensorRef(model.down.weight)
    with pytest.raises(RewriteError, match=r"'down.weight' cannot be cut in place"):
        cut(model, optimizer).commit()
    assert not reference.expired()
    assert same(everything(model, optimizer), before)


def test_former_tensors_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    split, alive, most = ParameterCut.split, [], 0

    def watched(self: ParameterCut, tensor: torch.Tensor) -> object:
        nonlocal most
        alive.append(StorageWeakRef(tensor.untyped_storage()))
        most = max(most, sum(not reference.expired() for reference in alive))
        return split(self, tensor)

    transfer = cut(model, optimizer)
    monkeypatch.setattr(ParameterCut, "split", watched)
    transfer.commit()
    assert len(alive) == 3 * 4
    assert most == 2  # a parameter and its gradient
    assert all(reference.expired() for reference in alive)


# Bad input.


def swapped(params: list[nn.Parameter], index: int, other: nn.Parameter) -> list[nn.Parameter]:
    return [*params[:index], other, *params[index + 1 :]]


def refuses(model: nn.Module, cuts: dict[str, ParameterCut], optimizers: list[Optimizer], message: str,
            error: type[Exception] = RewriteError) -> None:  # fmt: skip
    before = everything(model, *optimizers) if not any(p.is_meta for p in model.parameters()) else []
    with pytest.raises(error, match=message):
        prepare(dict(model.named_parameters(remove_duplicate=False)), cuts, optimizers)
    assert not before or same(everything(model, *optimizers), before)


def test_optimizer_of_another_copy_is_refused() -> None:
    model = Network()
    optimizer = o.Adam(copy.deepcopy(model).parameters())
    refuses(
        model,
        cuts_of(),
        [optimizer],
        "Adam holds none of the model's parameters.*another copy",
        OptimizerError,
    )


def test_optimizer_of_something_else_is_refused() -> None:
    model = Network()
    refuses(
        model,
        cuts_of(),
        [o.Adam(nn.Linear(7, 7).parameters())],
        "none of the model's parameters$",
        OptimizerError,
    )


def test_missing_parameters_are_all_named() -> None:
    model = Network()
    optimizer = o.Adam([model.down.bias])
    refuses(
        model,
        cuts_of(),
        [optimizer],
        "holds 'up.weight', 'up.bias', 'down.weight'. Pass every",
        OptimizerError,
    )


def test_one_replaced_parameter_is_named() -> None:
    model = Network()
    params = swapped(list(model.parameters()), 0, nn.Parameter(model.up.weight.detach().clone()))
    refuses(
        model,
        cuts_of(),
        [o.Adam(params)],
        "holds 'up.weight', only others of the same shapes",
        OptimizerError,
    )


def test_something_else_than_an_optimizer_is_refused() -> None:
    model = Network()
    with pytest.raises(OptimizerError, match="got dict"):
        prepare(dict(model.named_parameters()), cuts_of(), [{}])


def test_lbfgs_is_refused_only_if_it_holds_what_is_cut() -> None:
    model = Network()
    refuses(model, cuts_of(), [o.LBFGS(model.parameters())], "LBFGS cannot follow", OptimizerError)
    rest = o.SGD([p for name, p in model.named_parameters() if name != "down.bias"], lr=0.1)
    assert cut(model, rest, o.LBFGS([model.down.bias])).changes


def test_state_without_a_place_is_refused() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    for param in model.parameters():
        optimizer.state[param]["blocks"] = torch.zeros(3)
    first, others = (
        r"'blocks' of shape \(3,\) for 'up.weight'",
        "'blocks' of 'up.bias', 'blocks' of 'down.weight'",
    )
    message = f"(?s){first}.*The same goes for {others}"
    refuses(model, cuts_of(), [optimizer], message, OptimizerStateError)


def test_cut_for_another_shape_is_refused() -> None:
    model = Network()
    cuts = cuts_of() | {"down.bias": ParameterCut(UNITS, (4,))}
    refuses(model, cuts, [], r"'down.bias' has shape \(5,\), its cut is for \(8,\)")


def test_unknown_names_are_all_listed() -> None:
    both = {"a": ParameterCut(UNITS, (4,)), "b": ParameterCut(UNITS, (4,))}
    refuses(Network(), both, [], "no parameter 'a'; the model has no parameter 'b'")


def test_different_cuts_of_a_tied_parameter_are_refused() -> None:
    model = nn.ParameterDict()
    model["a"] = model["b"] = nn.Parameter(torch.zeros(8))
    cuts = {"a": ParameterCut(UNITS, (4,)), "b": ParameterCut(~UNITS, (4,))}
    refuses(model, cuts, [], "'a' and 'b' are one parameter, and their cuts differ")


def test_tied_by_memory_alone_is_refused() -> None:
    model = nn.ParameterDict({"a": torch.zeros(8), "b": torch.zeros(8)})
    model["b"].data = model["a"].data
    refuses(model, {"a": ParameterCut(UNITS, (4,))}, [], "share memory .*: 'a', 'b'. Tie them")


def lazy() -> nn.Parameter:
    return nn.UninitializedParameter()


def quantised() -> nn.Parameter:
    return nn.Parameter(torch.zeros(8, dtype=torch.int8), requires_grad=False)


def sparse() -> nn.Parameter:
    return nn.Parameter(torch.eye(8).to_sparse())


def wrapped() -> nn.Parameter:
    from torch.testing._internal.two_tensor import TwoTensor

    return nn.Parameter(TwoTensor(torch.zeros(8), torch.zeros(8)))


def frozen_in_inference_mode() -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(8), requires_grad=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lazy, "'a' is not initialised yet"),
        (quantised, "'a' is quantised .torch.int8.: sparsify before"),
        (sparse, "'a' is sparse .*to_dense"),
        (wrapped, "'a' is a TwoTensor: sparsify before"),
        (frozen_in_inference_mode, "'a' is no leaf"),
    ],
)
def test_parameter_that_cannot_be_cut_is_refused(make: Callable[[], nn.Parameter], message: str) -> None:
    parameters = {"a": make(), "b": nn.Parameter(torch.ones(8))}
    with pytest.raises(RewriteError, match=message):
        prepare(parameters, dict.fromkeys("ab", ParameterCut(UNITS, (4,))))
    assert torch.equal(parameters["b"], torch.ones(8))


def test_gradients_follow_a_later_change_of_dtype() -> None:
    layer = torch.nn.Linear(3, 4)
    kept = torch.tensor([[True] * 3, [False] * 3, [True] * 3, [True] * 3])
    prepare({"weight": layer.weight}, {"weight": ParameterCut(kept, (3, 3))}, []).commit()
    layer.double()
    (gradient,) = torch.autograd.grad((layer.weight / 3).sum(), layer.weight)
    assert gradient.dtype == torch.float64
    assert gradient[0, 0].item() == 1 / 3
