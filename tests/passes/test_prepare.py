"""Prepare: what a model computes from its inputs in Python, ahead of the graph."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from ecospa_fx.passes.prepare import preparation


def test_a_plain_model_needs_nothing() -> None:
    inputs = {"input": torch.ones(2, 3)}
    prepare = preparation(nn.Linear(3, 3), inputs)
    assert prepare is dict
    assert prepare(inputs) == inputs
    assert prepare(inputs) is not inputs


def test_a_decoder_needs_nothing_either() -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    assert preparation(LlamaModel(config), {"input_ids": torch.ones(1, 3, dtype=torch.long)}) is dict


class Positions(nn.Module):
    def get_rope_index(self, input_ids: Tensor, kinds: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        return (input_ids + kinds,)

    def forward(self, input_ids: Tensor, kinds: Tensor | None = None, position_ids: Any = None) -> Tensor:
        return input_ids


class Outer(PreTrainedModel):  # type: ignore[misc]
    config_class = LlamaConfig

    def __init__(self) -> None:
        super().__init__(LlamaConfig())
        self.inner = Positions()

    def forward(self, input_ids: Tensor, kinds: Tensor | None = None, position_ids: Any = None) -> Tensor:
        return input_ids


def test_positions_come_from_what_is_there() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    assert preparation(Outer(), {"input_ids": ids}) is dict
    full = preparation(Outer(), {"input_ids": ids, "kinds": ids})({"input_ids": ids, "kinds": ids})
    assert (full["position_ids"] == 2).all()


class NeedsKinds(Positions):
    def get_rope_index(self, input_ids: Tensor, kinds: Tensor | None = None) -> tuple[Tensor]:  # type: ignore[override]
        assert kinds is not None, "an image without a place"
        return (input_ids + kinds,)


def test_positions_that_do_not_suit_the_inputs_are_left_to_the_model() -> None:
    model, ids = Outer(), torch.ones(2, 3, dtype=torch.long)
    model.inner = NeedsKinds()
    assert preparation(model, {"input_ids": ids}) is dict
    prepare = preparation(model, {"input_ids": ids, "kinds": ids})
    with pytest.raises(AssertionError, match="without a place"):
        prepare({"input_ids": ids})
