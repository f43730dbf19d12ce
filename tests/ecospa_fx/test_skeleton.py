"""Stand-ins of the dense shapes: zeros that take no memory to speak of, in place for a while."""

import pytest
import torch
from torch import nn

from ecospa_fx.skeleton import dense_stand_ins


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    return model


SHAPES = {"0.weight": (4, 3), "1.weight": (4, 3), "0.bias": (4,), "1.bias": (4,), "2.weight": (3, 3)}


def test_parameters_are_dense_inside_and_the_same_afterwards() -> None:
    model = tied()
    before = dict(model.named_parameters(remove_duplicate=False))
    with dense_stand_ins(model, SHAPES):
        inside = dict(model.named_parameters(remove_duplicate=False))
        assert {n: tuple(inside[n].shape) for n in SHAPES} == SHAPES
        assert inside["0.weight"] is inside["1.weight"] is not before["0.weight"]
        assert not inside["0.bias"].requires_grad
        assert inside["1.bias"].requires_grad
        assert inside["2.weight"] is before["2.weight"]
        assert inside["0.weight"].untyped_storage().nbytes() == 12  # one row
        assert not model[0](torch.ones(5, 3)).any()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[n] is p for n, p in before.items())


def test_pairs_may_be_complex_numbers() -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.randn(2, 2))})
    with dense_stand_ins(model, {"a": (5, 2)}):
        assert torch.view_as_complex(model["a"]).shape == (5,)


def test_an_error_inside_leaves_no_trace() -> None:
    model = tied()
    weight = model[0].weight
    with pytest.raises(ZeroDivisionError), dense_stand_ins(model, SHAPES):
        _ = 1 / 0
    assert model[0].weight is weight
