"""Teach an operator that ecospa_fx has never heard of: one function that says how labels flow through it."""

from typing import Any

import torch
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.labels import Tag
from ecospa_fx.rules import rule
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.pointwise import through
from ecospa_fx.testing import prove, sample


@torch.library.custom_op("shop::squared_relu", mutates_args=())
def squared_relu(x: Tensor) -> Tensor:
    return x.relu().square()


@squared_relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def backward(context: Any, gradient: Tensor) -> Tensor:
    (x,) = context.saved_tensors
    return gradient * 2 * x.relu()


squared_relu.register_autograd(
    backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(squared_relu(self.up(x)))
        return y


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 24)

    unknown = ecospa_fx.compile(FeedForward(), args=(x,))
    print(len(unknown.couplings.couples), "couples before:")
    print(unknown.explain("up.weight"))

    @rule("shop.squared_relu.default")
    def flow(call: Call) -> Arrays:
        """Entry by entry, and zero stays zero: the labels of `x` go through as they are."""
        call.tag(
            call.value("x").arrays, Tag.NONLINEAR
        )  # couples across an activation function are called "ffn"
        return through(call, "x")

    print(prove("shop.squared_relu.default", sample(torch.randn(3, 5))))
    known = ecospa_fx.compile(FeedForward(), args=(x,))
    print(len(known.couplings.couples), "couple after:")
    print(known.explain("up.weight"))
    known(x).square().mean().backward()
    print(known.sparsify(ratio=0.25))
    print(known.verify(x))


if __name__ == "__main__":
    main()
