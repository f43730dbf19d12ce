"""Custom autograd functions: they keep their own backward, and freeze what goes through them."""

import pytest
import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.errors import BackwardError
from ecospa_fx.testing import random_removal
from tests.models.masked import MaskedModel, assert_same


class Straight(torch.autograd.Function):
    """Rounds, and passes the gradient straight through."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Halved(torch.autograd.Function):
    """Takes Python objects, which no graph can hold, and halves the gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor, layer: nn.Module) -> Tensor:
        with torch.no_grad():
            return layer(x) * 1.0

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / 2, None


class Block(nn.Module):
    """A quantised bottleneck beside a plain feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(9, 6)
        self.up, self.down = nn.Linear(6, 13), nn.Linear(13, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(Straight.apply(3 * self.a(x)))
        return y + self.down(torch.relu(self.up(x)))


class Opaque(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(Halved.apply(self.a(x), self.b))))


def test_gradients_are_the_functions_own() -> None:
    model = Block().double()
    masked = MaskedModel(model)
    compiled = ecospa_fx.compile(model, args=(torch.randn(4, 6, dtype=torch.float64),))
    assert {c.kind: c.num_units for c in compiled.couplings} == {"ffn": 13}
    reasons = {f.parameter: f.reason for f in compiled.couplings.frozen}
    assert reasons["a.bias"].op == "torch.autograd.Function Straight"
    x = torch.randn(7, 6, dtype=torch.float64)
    for seed in range(2):
        compiled.apply(random_removal(compiled, 0.3, seed))
        assert_same(compiled, masked, lambda m: m(x))
    compiled(x).sum().backward()
    assert model.a.weight.grad is not None
    assert model.a.weight.grad.abs().sum() > 0


def test_a_function_that_no_graph_can_hold_is_refused() -> None:
    model = Opaque()
    with pytest.raises(BackwardError, match=r"would not train a\.weight, a\.bias.*forward of Halved"):
        ecospa_fx.compile(model, args=(torch.randn(4, 6),))
    with torch.no_grad():
        ecospa_fx.compile(model, args=(torch.randn(4, 6),))
