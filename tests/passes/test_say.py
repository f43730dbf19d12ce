"""Say: configs for shapes that are wanted, without a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from ecospa_fx.config_fields import Change
from ecospa_fx.passes.say import Say, shapes_of

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 31,
}


def model(**sizes: Any) -> Any:
    with torch.device("meta"):
        return hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, num_local_experts=3, **sizes))


CASES: dict[str, tuple[dict[str, Any], Change]] = {
    "nothing": ({}, {}),
    "ffn": ({"intermediate_size": 30}, {("intermediate_size",): 30}),
    "experts": ({"num_local_experts": 2}, {("num_local_experts",): 2}),
    "groups, and the width of a head": (
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6},
        {("num_attention_heads",): 2, ("num_key_value_heads",): 1, ("head_dim",): 6},
    ),
}


@pytest.mark.parametrize(("sizes", "expected"), CASES.values(), ids=CASES)
def test_solutions(sizes: dict[str, Any], expected: Change) -> None:
    dense = {"intermediate_size": 44, "num_key_value_heads": 2}
    small = hf.MixtralConfig(**{**SIZES, "num_local_experts": 3, **dense, **sizes})
    made = model(**dense)
    before = shapes_of(made)
    with torch.device("meta"):
        wanted = hf.MixtralForCausalLM(small)
    for name, p in wanted.named_parameters():
        made.get_parameter(name).data = p
    say = Say(made, before)
    assert expected in list(say.solutions())


def test_what_cannot_be_said() -> None:
    made = model(intermediate_size=44, num_key_value_heads=2)
    before = shapes_of(made)
    made.lm_head.weight = nn.Parameter(torch.empty(31, 20, device="meta"))
    say = Say(made, before)
    assert list(say.solutions()) == []
    assert say.best == ["lm_head.weight has shape [31, 20], not [31, 24]"]
