"""A gated couple, for the tests of Fisher information."""

import numpy as np
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.fisher import gradient_statistics

X = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)


class Gated(nn.Module):
    """Gate, up and down: a couple of three members, with biases that do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def compiled(model: nn.Module) -> CompiledModel:
    return ecospa_fx.compile(model.double(), args=(X,))


def random_gradients(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()
    }


def statistics(
    model: CompiledModel, *samples: dict[str, torch.Tensor]
) -> ecospa_fx.fisher.GradientStatistics:
    parameters = dict(model.named_parameters())
    return gradient_statistics(model.couplings, model.removal, parameters, samples)


def mean_square(model: CompiledModel, gradients: dict[str, torch.Tensor]) -> float:
    weights = [n for n, p in model.named_parameters() if p.dim() == 2]
    return float(np.mean([gradients[n].square().mean() for n in weights]))
