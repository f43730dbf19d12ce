"""Models that are refused: the error names the user's own line, and the model stays as it was."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import ecospa_fx
from ecospa_fx import errors
from tests.models.snapshot import untouched

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Branch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if x.sum() > 0:
            return y
        return -y


class Item(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        scale = float(y.sum().item())
        return y / (1.0 if scale > 0 else 2.0)


class Number(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / (1.0 if y.sum().item() > 0 else 2.0)


class Loop(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        while y.norm() > 1:
            y = y / 2
        return y


class Noise(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if torch.rand(()) > 0.5:
            return y
        return -y


class NoisyLoop(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        while torch.rand(()) > 0.5:
            y = y / 2
        return y


LINES = {
    Branch: "if x.sum() > 0:",
    Number: "return y / (1.0 if y.sum().item() > 0 else 2.0)",
    Loop: "while y.norm() > 1:",
}
UNKNOWN = {
    Item: ("scale = float(y.sum().item())", "torch.where, torch.cond or a mask"),
    Noise: ("if torch.rand(()) > 0.5:", "torch.where, torch.cond or a mask"),
    NoisyLoop: ("while torch.rand(()) > 0.5:", "torch.where, torch.cond or a mask"),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", LINES, ids=lambda kind: kind.__name__)
def test_a_branch_goes_as_it_went(kind: type[nn.Linear], sign: int) -> None:
    if kind is Number and sign > 0 and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 fails on the bounds of floating-point numbers")
    model = kind(4, 4, bias=False)
    nn.init.ones_(model.weight)
    x = sign * X.abs()
    compiled = ecospa_fx.compile(model, args=(x,))
    assert torch.equal(compiled(1.01 * x), model(1.01 * x))
    with pytest.raises(errors.InputError, match=re.escape(LINES[kind]) + "\n  compile the model anew"):
        compiled(-x if kind is not Loop else 1e-6 * x)


@pytest.mark.parametrize("kind", UNKNOWN, ids=lambda kind: kind.__name__)
def test_what_cannot_be_traced(kind: type[nn.Module]) -> None:
    code, remedy = UNKNOWN[kind]
    model = kind(4, 4)
    with untouched(model), pytest.raises(errors.CaptureError) as caught:
        ecospa_fx.compile(model, args=(X,))
    lines, first = inspect.getsourcelines(kind)
    number = next(first + i for i, line in enumerate(lines) if code in line)
    assert f"{kind.__name__} cannot be captured" in str(caught.value)
    assert f"{Path(__file__).name}:{number}:" in str(caught.value)
    assert remedy in str(caught.value)


class Quantised(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)


class Sparse(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.eye(4).to_sparse())


ODD = {
    "quantised": (Quantised, r"1\.weight \(quantised, torch\.int8\).*dequantise"),
    "sparse": (Sparse, r"1\.weight \(sparse layout torch\.sparse_coo\).*densify"),
}


@pytest.mark.parametrize(("make", "words"), ODD.values(), ids=ODD)
def test_parameters_that_are_not_plain(make: Callable[[], nn.Module], words: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make())
    with untouched(model), pytest.raises(errors.CaptureError, match=words):
        ecospa_fx.compile(model, args=(X,))


def test_all_odd_parameters_are_listed() -> None:
    with pytest.raises(errors.CaptureError, match=r"0\.weight.*, 1\.weight"):
        ecospa_fx.compile(nn.Sequential(Quantised(), Quantised()))


def test_no_module() -> None:
    with pytest.raises(errors.CaptureError, match="not function"):
        ecospa_fx.compile(lambda x: x)  # type: ignore[arg-type]


class Sorted(nn.Module):
    """A softmax along the hidden axis holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).softmax(-1))


def test_a_model_without_couples_lists_the_reasons() -> None:
    model = Sorted()
    compiled = ecospa_fx.compile(model, args=(X,))
    compiled(X).sum().backward()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.step()
    with untouched(compiled, optimizer), pytest.raises(errors.CoupleError) as caught:
        compiled.sparsify(ratio=0.1, optimizer=optimizer)
    text = str(caught.value)
    assert re.search(r"up\.weight axis 0.*aten\.softmax.*test_bad_models\.py:\d+: return self\.down", text)
    assert "down.weight axis 0: the model returns this axis" in text


def test_a_request_before_any_call_shows_the_line_to_write() -> None:
    class Two(nn.Linear):
        def forward(self, tokens: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(tokens * mask) * scale

    compiled = ecospa_fx.compile(Two(4, 4))
    line = re.escape("ecospa_fx.compile(model, args=(tokens, mask,))")
    with untouched(compiled), pytest.raises(errors.CaptureError, match=line):
        compiled.sparsify(ratio=0.1)


def test_a_request_before_any_call_uses_the_models_own_inputs() -> None:
    class Offering(nn.Sequential):
        @property
        def dummy_inputs(self) -> dict[str, Tensor]:
            return {"input": X}

    compiled = ecospa_fx.compile(Offering(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))
    report = compiled.sparsify({n: torch.ones_like(p) for n, p in compiled.named_parameters()}, ratio=0.5)
    assert report.coupled_after == 36


def test_a_size_that_the_capture_had_to_fix() -> None:
    class Fixed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(5, 1)

    compiled = ecospa_fx.compile(Fixed(4, 4), args=(X,))
    words = r"'x' has size 6 on axis 0, but the capture had to fix size 5 .*compile the model anew"
    with untouched(compiled), pytest.raises(errors.InputError, match=words):
        compiled(torch.ones(6, 4))


def test_two_inputs_that_contradict_each_other() -> None:
    class Sum(nn.Linear):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + y

    compiled = ecospa_fx.compile(Sum(4, 4), args=(X, X))
    assert compiled(X[:3], X[:3]).shape == (3, 4)
    with pytest.raises(errors.InputError, match=r"'y' has size 2 on axis 0, but another input has size 3"):
        compiled(X[:3], X[:2])
