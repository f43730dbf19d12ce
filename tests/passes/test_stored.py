"""Running statistics: a model in training keeps them in buffers of the dense size."""

import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.testing import random_removal


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Conv1d(6, 18, 1), nn.BatchNorm1d(9), nn.Conv1d(9, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.nn.functional.silu(self.norm(torch.nn.functional.glu(self.into(x), 1))))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))


@pytest.mark.parametrize(("make", "shape"), [(perceptron, (8, 6)), (Convolution, (5, 6, 7))])
def test_batch_norm_in_training(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    compiled = ecospa_fx.compile(make().double(), args=(x,))
    optimizer = torch.optim.AdamW(compiled.parameters())
    for seed in (1, 2):
        compiled(x).square().mean().backward()
        optimizer.step()
        compiled.apply(random_removal(compiled, 0.5, seed), optimizer)
        assert compiled.verify(x).within(1e-9)
    assert any(tuple(p.shape) != compiled.dense_shapes[n] for n, p in compiled.named_parameters())


def test_statistics_go_on_for_what_is_left() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, dtype=torch.float64)
    plain = perceptron().double()
    compiled = ecospa_fx.compile(perceptron().double(), args=(x,))
    compiled.load_state_dict(plain.state_dict())
    compiled.apply(random_removal(compiled, 0.5, 1))
    kept = compiled.kept_mask("0.bias")
    before = compiled.get_buffer("1.running_mean").clone()
    compiled(x)
    plain(x)
    mean, var = (compiled.get_buffer(f"1.running_{name}") for name in ("mean", "var"))
    torch.testing.assert_close(mean[kept], plain[1].running_mean[kept])
    torch.testing.assert_close(var[kept], plain[1].running_var[kept])
    assert torch.equal(mean[~kept], before[~kept])
    compiled.eval()
    plain.eval()
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight"):
            plain.get_parameter(name).mul_(compiled.kept_mask(name))
    torch.testing.assert_close(compiled(x), plain(x))
