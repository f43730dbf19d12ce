"""A network of which hidden units go, and the optimizers that follow, for the tests of remap."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor as TransformersAdafactor

from ecospa_fx.cut import ParameterCut
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
