"""Recast: caches as wide as in the dense model, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import ecospa_fx
from ecospa_fx import InputError
from ecospa_fx.layout import Layout
from ecospa_fx.passes.recast import States, states
from ecospa_fx.testing import random_removal

HEADS = Layout((1, 3, 2, 4), {1: np.array([0, 2]).reshape(1, 2, 1, 1),
                              3: np.array([[0, 1], [1, 3]]).reshape(1, 2, 1, 2)})  # fmt: skip
DENSE = torch.arange(24.0).view(1, 3, 2, 4)
SMALL = torch.stack([DENSE[:, 0][..., [0, 1]], DENSE[:, 2][..., [1, 3]]], 1)


def cache(keys: torch.Tensor) -> Any:
    made = hf.DynamicCache()
    made.update(keys, keys + 100, 0)
    return made


def held(named: dict[str, Any]) -> torch.Tensor:
    keys: torch.Tensor = named["past"].layers[0].keys
    return keys


@pytest.fixture(name="placed")
def _placed() -> States:
    compiled = ecospa_fx.compile(
        hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    )
    compiled(torch.ones(1, 2, dtype=torch.long))  # lets the tensors of caches be seen
    return States((HEADS, HEADS), (HEADS, HEADS))


@pytest.mark.parametrize("keys", [DENSE, SMALL], ids=["dense", "small"])
def test_both_ways(placed: States, keys: torch.Tensor) -> None:
    """Each head has places of its own."""
    named = {"x": 1, "past": cache(keys)}
    assert torch.equal(held(placed.small(named)), SMALL)
    dense = held(placed.dense(named))
    assert torch.equal(dense.nonzero(), (torch.isin(DENSE, SMALL) & (DENSE > 0)).nonzero())
    assert torch.equal(placed.kept((named["past"],))[0], SMALL)
    assert torch.equal(held(named), keys)


def test_a_cache_of_other_widths(placed: States) -> None:
    with pytest.raises(InputError, match=r"shape \[1, 3, 2, 3\].* now has \[1, 2, 2, 2\]"):
        placed.small({"past": cache(DENSE[..., :3])})
    with pytest.raises(InputError, match="made before a removal"):
        placed.check({"past": cache(DENSE)})
    placed.check({"past": cache(SMALL)})


def test_an_output_of_another_structure(placed: States) -> None:
    assert placed.kept((torch.ones(2),)) == []


def test_layouts_of_a_program() -> None:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4
    )
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config))
    tokens = torch.ones(2, 3, dtype=torch.long)
    past = compiled(tokens, use_cache=True).past_key_values
    compiled.apply(random_removal(compiled, 0.4))
    first = states(*compiled.signatures.first(compiled.removal).coupled, compiled.removal)
    assert not first.inputs
    assert [at is not None and at.changed(3) for at in first.outputs] == [True] * 4
    named = {"input_ids": tokens[:, :1], "past_key_values": past}
    step, _ = compiled.signatures.of(named, compiled.removal)
    assert len(states(*step.coupled, compiled.removal).inputs) == 4
