"""Whatever is refused names culprit and remedy, and leaves everything bit for bit as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

import ecospa_fx
from ecospa_fx import CompiledModel, Plan, Removal, errors, signatures
from ecospa_fx.passes import remap
from ecospa_fx.testing import random_removal
from tests.models.snapshot import identical, state_of, untouched

X = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
Model = tuple[CompiledModel, Optimizer]


def ffn(hidden: int = 34) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, hidden), nn.GELU(), nn.Linear(hidden, 10))


@pytest.fixture(name="model")
def _model() -> Model:
    """A feed-forward block after one step of AdamW, with gradients for the next."""
    compiled = ecospa_fx.compile(ffn(), args=(X,))
    optimizer = AdamW(compiled.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        compiled(X).square().sum().backward()
    return compiled, optimizer


def gradients(compiled: CompiledModel) -> dict[str, Tensor]:
    return {n: torch.ones_like(p) for n, p in compiled.named_parameters()}


TARGETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one": ({"ratio": 1.0}, (r"ratio is 1.0, not in \[0, 1\)",)),
    "below zero": ({"ratio": -0.1}, (r"ratio is -0.1, not in \[0, 1\)",)),
    "nan": ({"ratio": float("nan")}, (r"ratio is nan, not in \[0, 1\)",)),
    "text": ({"ratio": "0.3"}, (r"ratio is '0.3', not in \[0, 1\)",)),
    "a flag": ({"ratio": True}, ("ratio is True",)),
    "both": ({"ratio": 0.1, "target_params": 300}, ("either ratio or target_params", "not both")),
    "neither": ({}, ("either ratio or target_params", "not neither")),
    "too much": ({"ratio": 0.99}, ("693 of 714 parameters can go", "0.9705 at most", "0.weight: 10")),
    "too small": ({"target_params": 3}, ("31 parameters stay at least", "2.bias: 10", "returns this axis")),
    "no size": ({"target_params": 0}, ("target_params is 0", "whole number above zero")),
    "half a parameter": ({"target_params": 99.5}, ("target_params is 99.5", "whole number")),
    "unknown keyword": ({"ratio": 0.1, "rounds_to": 4}, ("'rounds_to'", "round_to")),
    "setting out of range": ({"ratio": 0.1, "min_width": 0}, ("min_width is 0",)),
    "unknown kind": ({"ratio": 0.1, "kinds": ("fnf",)}, ("no couples of kind fnf", "of kind ffn")),
    "limit of nothing": ({"ratio": 0.1, "limits": {"fnf": 0.5}}, ("'fnf' fits no couple", "mean 'ffn'")),
    "limit in the way": ({"ratio": 0.6, "limits": {"ffn": 0.5}}, ("at most", "limit")),
}


@pytest.mark.parametrize(("asked", "words"), TARGETS.values(), ids=TARGETS)
def test_targets(model: Model, asked: dict[str, Any], words: tuple[str, ...]) -> None:
    compiled, optimizer = model
    error = errors.CoupleError if "fnf" in asked.get("kinds", ()) else errors.PlanError
    with untouched(compiled, optimizer), pytest.raises(error) as caught:
        compiled.sparsify(optimizer=optimizer, **asked)
    for word in words:
        caught.match(word)


def changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[CompiledModel], Any]:
    return lambda compiled: {n: change(g) if n == name else g for n, g in gradients(compiled).items()}


def without(*names: str) -> Callable[[CompiledModel], Any]:
    return lambda compiled: {n: g for n, g in gradients(compiled).items() if n not in names}


def stained(value: float) -> Callable[[Tensor], Tensor]:
    return lambda g: torch.where(torch.arange(g.numel()).view(g.shape) == 3, value, g)


GRADIENTS: dict[str, tuple[Callable[[CompiledModel], Any], tuple[str, ...]]] = {
    "missing": (without("0.bias", "2.weight"), ("no gradient for '0.bias', '2.weight'", "used in the loss")),
    "none": (lambda _: {}, ("no gradient for", "backward")),
    "none in an iterable": (lambda _: [], ("gradient",)),
    "misnamed": (
        lambda c: gradients(c) | {"0.weigth": torch.ones(34, 10)},
        ("'0.weigth' is no parameter", "did you mean '0.weight'"),
    ),
    "prefixed": (
        lambda c: {f"module.{n}": g for n, g in gradients(c).items()},
        ("'module.0.weight' is no parameter", "did you mean '0.weight'"),
    ),
    "of another shape": (changed("0.weight", lambda g: g[:3]), (r"'0.weight' has shape \[3, 10\]", "not")),
    "no tensor": (changed("0.weight", lambda g: 3.0), ("'0.weight' is a float, not a tensor",)),
    "nan": (changed("0.weight", stained(float("nan"))), ("NaN or infinite", "0.weight")),
    "inf": (changed("2.weight", stained(float("inf"))), ("NaN or infinite", "2.weight")),
    "nan later": (
        lambda c: [gradients(c), changed("0.bias", stained(float("nan")))(c)],
        ("NaN or infinite", "0.bias"),
    ),
    "a tensor": (lambda c: torch.ones(3), ("grads maps parameter names", "Tensor does not")),
    "a number": (lambda c: 0.3, ("grads maps parameter names", "float does not")),
}


@pytest.mark.parametrize(("make", "words"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients(model: Model, make: Callable[[CompiledModel], Any], words: tuple[str, ...]) -> None:
    compiled, optimizer = model
    with untouched(compiled, optimizer), pytest.raises(errors.GradientError) as caught:
        compiled.sparsify(make(compiled), ratio=0.2, optimizer=optimizer)
    for word in words:
        caught.match(word)


def test_a_list_of_tensors(model: Model) -> None:
    compiled, optimizer = model
    with untouched(compiled, optimizer), pytest.raises(errors.GradientError, match="grads maps"):
        compiled.sparsify([p.grad for p in compiled.parameters()], ratio=0.2, optimizer=optimizer)


def test_a_score_without_its_gradients(model: Model) -> None:
    compiled, optimizer = model
    compiled.zero_grad()
    with untouched(compiled, optimizer), pytest.raises(errors.GradientError, match=r"backward\(\) first"):
        compiled.sparsify(ratio=0.2, optimizer=optimizer, score="taylor")


OPTIMIZERS: dict[str, tuple[Callable[[CompiledModel], Any], tuple[str, ...]]] = {
    "of another model": (lambda c: SGD(nn.Linear(2, 2).parameters(), 0.1), ("SGD holds none",)),
    "of a copy": (lambda c: SGD(ffn().parameters(), 0.1), ("holds none", "another copy of the model")),
    "of a part": (
        lambda c: SGD(c.get_submodule("0").parameters(), 0.1),
        ("holds '2.weight'", "Pass every optimizer"),
    ),
    "lbfgs": (lambda c: LBFGS(c.parameters()), ("LBFGS cannot follow", "another optimizer")),
    "no optimizer": (lambda c: ["adam"], ("expected a torch.optim.Optimizer, got str",)),
}


@pytest.mark.parametrize(("make", "words"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(model: Model, make: Callable[[CompiledModel], Any], words: tuple[str, ...]) -> None:
    compiled, optimizer = model
    wrong = make(compiled)
    with untouched(compiled, optimizer), pytest.raises(errors.OptimizerError) as caught:
        compiled.sparsify(ratio=0.2, optimizer=wrong)
    for word in words:
        caught.match(word)


def test_state_that_nobody_can_place(model: Model) -> None:
    compiled, optimizer = model
    optimizer.state[compiled.get_parameter("0.weight")]["odd"] = torch.ones(7)
    with untouched(compiled, optimizer), pytest.raises(errors.OptimizerStateError, match=r"odd.*0.weight"):
        compiled.sparsify(ratio=0.2, optimizer=optimizer)


def test_an_unknown_score(model: Model) -> None:
    compiled, optimizer = model
    with untouched(compiled, optimizer), pytest.raises(errors.ScoreError, match=r"'fisherr'.*fisher"):
        compiled.sparsify(ratio=0.2, optimizer=optimizer, score="fisherr")


CALLS = {
    "one too many": ((X, X), "too many positional"),
    "none": ((), "missing a required argument: 'input'"),
    "wider": ((torch.ones(5, 11),), "size 11 on axis 1, but the capture had to fix size 10"),
}


@pytest.mark.parametrize(("call", "words"), CALLS.values(), ids=CALLS)
def test_inputs_that_do_not_fit(model: Model, call: tuple[Tensor, ...], words: str) -> None:
    with untouched(*model), pytest.raises(errors.InputError, match=words):
        model[0](*call)


def removal(**removed: list[int]) -> Removal:
    """Of rows of ``0.weight``, entries of ``0.bias`` and columns of ``2.weight``."""
    shapes = {"w": ("0.weight", 0, (34, 10)), "b": ("0.bias", 0, (34,)), "o": ("2.weight", 1, (10, 34))}
    parts = {n: shapes[n] for n in removed}
    return Removal(
        {name: shape for name, _, shape in parts.values()},
        {parts[n][0]: {parts[n][1]: np.array(i)} for n, i in removed.items()},
    )


def plan_of_another() -> Plan:
    other = ecospa_fx.compile(ffn(21), args=(X,))
    return other.plan(ratio=0.5, allocation="uniform")


REMOVALS: dict[str, tuple[Callable[[], Any], str]] = {
    "plan of another model": (plan_of_another, r"0.weight is of shape \(21, 10\) in the plan and \(34, 10\)"),
    "of no parameter": (lambda: Removal({"x": (3,)}, {"x": {0: np.array([1])}}), r"x is .*absent"),
    "half a unit": (lambda: removal(w=[1, 2], b=[1, 2]), "ties more entries together.*2.weight"),
    "other indices": (lambda: removal(w=[1, 2], b=[1, 2], o=[2, 3]), "ties more entries together"),
    "an output": (lambda: Removal({"2.bias": (10,)}, {"2.bias": {0: np.array([0])}}), "ties more entries"),
}


@pytest.mark.parametrize(("make", "words"), REMOVALS.values(), ids=REMOVALS)
def test_plans_that_do_not_fit(model: Model, make: Callable[[], Any], words: str) -> None:
    compiled, optimizer = model
    plan = make()
    with untouched(compiled, optimizer), pytest.raises(errors.PlanError, match=words):
        compiled.apply(plan, optimizer)


def test_a_removal_of_what_does_not_exist(model: Model) -> None:
    compiled, optimizer = model
    with untouched(compiled, optimizer), pytest.raises(errors.PlanError, match=r"0\.weight"):
        compiled.apply(removal(w=[99], b=[99], o=[99]), optimizer)


def test_half_a_unit_before_any_call() -> None:
    compiled = ecospa_fx.compile(ffn())
    with untouched(compiled), pytest.raises(errors.EcoSpaError):
        compiled.apply(removal(w=[1, 2]))


def test_a_plan_that_revives_what_is_gone(model: Model) -> None:
    compiled, optimizer = model
    compiled.apply(removal(w=[1, 2], b=[1, 2], o=[1, 2]), optimizer)
    with untouched(compiled, optimizer), pytest.raises(errors.PlanError, match=r"gone already.*cumulative"):
        compiled.apply(removal(w=[2, 3], b=[2, 3], o=[2, 3]), optimizer)


class Failing:
    """Works for a while, then does not."""

    def __init__(self, function: Callable[..., Any], after: int) -> None:
        self.function, self.left = function, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise MemoryError("injected")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("step", ["_move_state", "_move_parameter"])
def test_a_cut_that_fails_halfway(
    model: Model, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    compiled, optimizer = model
    count = 3  # parameters that shrink
    monkeypatch.setattr(remap, step, Failing(getattr(remap, step), min(after, count - 1)))
    with untouched(compiled, optimizer), pytest.raises(MemoryError, match="injected"):
        compiled.sparsify(ratio=0.4, optimizer=optimizer)
    monkeypatch.undo()
    compiled.sparsify(ratio=0.4, optimizer=optimizer)
    assert compiled.verify(X).within(1e-4)


@pytest.mark.parametrize("step", ["rewrite", "dead_labels", "Executable"])
def test_a_rewrite_that_fails_for_the_second_graph(
    model: Model, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    compiled, optimizer = model
    compiled.eval()
    compiled(X)
    monkeypatch.setattr(signatures, step, Failing(getattr(signatures, step), 1))
    with untouched(compiled, optimizer), pytest.raises(MemoryError, match="injected"):
        compiled.sparsify(ratio=0.4, optimizer=optimizer)


def test_the_snapshot_sees_changes(model: Model) -> None:
    compiled, optimizer = model
    before = state_of(compiled, optimizer)
    compiled.apply(random_removal(compiled, 0.3), optimizer)
    after = state_of(compiled, optimizer)
    same = {key for key in before if identical(before[key], after[key])}
    assert same == {"identities", "modes", "random"}
    with pytest.raises(AssertionError, match="optimizers"), untouched(compiled, optimizer):
        optimizer.step()


def test_plans_as_text_are_checked() -> None:
    with pytest.raises(errors.PlanError, match="lacks"):
        Plan.from_json(json.dumps({"format": 1}))
