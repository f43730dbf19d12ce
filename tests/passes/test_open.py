"""Open: one more signature, of a model that may have shrunk, or that draws layers at random."""

import pytest
import torch
from torch import Tensor, nn

from ecospa_fx.errors import CaptureError
from ecospa_fx.passes.open import open_signature
from tests.models.snapshot import untouched

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    """Skips layers at random while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and torch.rand(()) < 0.5:
                continue
            x = self.drop(layer(x))
        return x


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def names(model: nn.Module) -> list[str]:
    program = open_signature(model, {"x": X}, shapes(model), check=True)
    return [str(n.target).removeprefix("aten.") for n in program.graph.nodes if n.op == "call_function"]


def test_layers_that_are_drawn_are_all_taken_and_dropout_stays() -> None:
    model = Drawing()
    with untouched(model):
        found = names(model)
    assert found == ["linear.default", "dropout.default"] * 2
    assert model.training


def test_evaluation_mode_is_captured_as_it_is() -> None:
    assert [n for n in names(Drawing().eval()) if "dropout" not in n] == ["linear.default"] * 2


def test_a_shrunk_model_is_captured_in_its_dense_shapes() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
    dense = shapes(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4)))
    with untouched(model):
        program = open_signature(model, {"input": X}, dense, check=True)
    assert program.parameters == dense


@pytest.mark.parametrize("training", [True, False])
def test_the_first_failure_is_told(training: bool) -> None:
    class Branch(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.data_ptr() % 2 + 1)

    model = Branch(4, 4).train(training)
    with untouched(model), pytest.raises(CaptureError, match=r"Branch cannot be captured"):
        open_signature(model, {"x": X}, shapes(model), check=True)
