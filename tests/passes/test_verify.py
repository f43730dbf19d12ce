"""Verify: two models that differ by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx import InputError
from ecospa_fx.masked import Difference
from ecospa_fx.passes.verify import verify
from ecospa_fx.removal import Removal
from ecospa_fx.testing import random_removal
from tests.models.snapshot import untouched

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def difference(run: Callable[[Scale], Any], removal: Removal | None = None) -> Difference:
    model = Scale()
    return verify(lambda: run(model), model, {"x": X}, removal or Removal(), {"w": (2,)})


def test_equal_models_do_not_differ() -> None:
    assert difference(lambda m: m(X)) == Difference()


def test_outputs_that_differ() -> None:
    found = difference(lambda m: m(X) + 0.5)
    assert (found.output, found.output_relative, found.gradient) == (0.5, 0.5 / 12, 0.0)


def test_gradients_that_differ() -> None:
    found = difference(lambda m: m(X) + (m.w - m.w.detach()))
    assert found.output == 0
    assert found.gradient > 0.1
    assert found.gradient_of == "w"
    assert not found.within(1e-3)
    assert "at w" in str(found)


@pytest.mark.parametrize("run", [lambda m: (m(X), m(X)), lambda m: m(X)[:1], lambda m: ()])
def test_outputs_of_another_kind(run: Callable[[Scale], Any]) -> None:
    assert difference(run).output == float("inf")


def test_nan_is_no_small_difference() -> None:
    assert difference(lambda m: m(X) * float("nan")).output == float("inf")


def test_what_is_gone_is_masked() -> None:
    gone = Removal({"w": (2,)}, {"w": {0: np.array([0])}})
    small = Scale()
    small.w = nn.Parameter(torch.tensor([3.0]))
    found = verify(
        lambda: torch.cat((X[:, :1] * 0, X[:, 1:] * small.w), 1), small, {"x": X}, gone, {"w": (2,)}
    )
    assert found == Difference()


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    with untouched(model):
        found = verify(lambda: model(X), model, {"input": X}, Removal(), shapes)
    assert found == Difference()


def test_a_cache_of_the_smaller_model() -> None:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4
    )
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config))
    tokens = torch.arange(8).view(2, 4)
    with torch.no_grad():
        past = compiled(tokens, use_cache=True).past_key_values
    assert compiled.verify(tokens[:, :1], past_key_values=past, use_cache=True).within(1e-4)
    compiled.apply(random_removal(compiled, 0.4))
    past = compiled(tokens, use_cache=True).past_key_values
    with pytest.raises(InputError, match=r"past_key_values came out of the smaller model.* in one call"):
        compiled.verify(tokens[:, :1], past_key_values=past, use_cache=True)
    assert past.get_seq_length() == 4
    assert compiled.verify(tokens, use_cache=True).within(1e-4)
