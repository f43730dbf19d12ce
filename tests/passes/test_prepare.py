"""Prepare: what a model computes from its inputs in Python, ahead of the graph."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

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
