"""Verify: two models that differ by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ecospa_fx
from ecospa_fx import CompiledModel, InputError
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


def llama() -> CompiledModel:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return ecospa_fx.compile(hf.LlamaForCausalLM(config).double())


TOKENS = torch.arange(8).view(2, 4)


def past_of(compiled: CompiledModel) -> Any:
    return compiled(TOKENS, use_cache=True).past_key_values


def test_a_cache_of_the_smaller_model() -> None:
    compiled = llama()
    for seed in range(2):
        past = past_of(compiled)
        found = compiled.verify(TOKENS[:, :1], past_key_values=past, use_cache=True)
        assert found.within(1e-9)
        assert past.get_seq_length() == 4  # verifying adds no tokens
        compiled.apply(random_removal(compiled, 0.4, seed=seed))
        assert compiled.verify(TOKENS, use_cache=True).within(1e-9)


def test_captured_with_a_cache() -> None:
    """The widths of the capture are those before the removals."""
    with torch.no_grad():
        past = past_of(llama())
    source = llama().source
    compiled = ecospa_fx.compile(source, (TOKENS[:, :1],), {"past_key_values": past, "use_cache": True})
    for seed in range(2):
        compiled.apply(random_removal(compiled, 0.3, seed=seed))
        assert compiled.verify().within(1e-9)


def test_a_cache_that_was_made_before_a_removal() -> None:
    compiled = llama()
    past = None
    for seed in range(2):
        compiled.apply(random_removal(compiled, 0.3, seed=seed))
        past = past or past_of(compiled)
    with pytest.raises(
        InputError, match=r"has \[2, 2, 4, 4\]: it was made before a removal. Start with a new"
    ):
        compiled(TOKENS[:, :1], past_key_values=past)
    with pytest.raises(InputError, match="it was made before a removal"):
        compiled.verify(TOKENS[:, :1], past_key_values=past)


def test_a_cache_that_differs() -> None:
    """Keys and values count, also where the outputs are the same."""
    compiled = llama()
    compiled(TOKENS, use_cache=True)
    answer = compiled._answer

    def off(named: Any) -> Any:
        output, signature = answer(named)
        layer = output.past_key_values.layers[0]
        layer.values = layer.values + 1
        return output, signature

    compiled.__dict__["_answer"] = off
    assert compiled.verify(TOKENS, use_cache=True).output == pytest.approx(1)


def test_windows() -> None:
    """Eager mode forgets what is outside of a window; the graph returns all."""
    config = hf.Gemma3TextConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, sliding_window=3,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    compiled = ecospa_fx.compile(hf.Gemma3ForCausalLM(config))
    compiled(TOKENS, use_cache=True)
    compiled.apply(random_removal(compiled, 0.4))
    assert compiled.verify(TOKENS, use_cache=True).within(1e-4)
    assert compiled.verify(TOKENS, past_key_values=past_of(compiled)).within(1e-4)


class Recomputed(nn.Module):
    """A feed-forward block that runs again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + checkpoint(self.block, x, use_reentrant=False)
        return found


def test_activation_checkpointing() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    compiled = ecospa_fx.compile(Recomputed().double(), args=(x,))
    compiled.apply(random_removal(compiled, 0.5, 0))
    assert sum(p.numel() for p in compiled.parameters()) < 136
    assert compiled.verify(x).within(1e-9)
