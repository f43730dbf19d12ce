"""Generation with the smaller graph and its smaller cache."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx
from ecospa_fx.testing import random_removal


def test_greedy_tokens_equal_the_masked_models() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=60,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).double().eval()
    masked = copy.deepcopy(model)
    tokens = torch.randint(3, 97, (2, 9))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0

    compiled = ecospa_fx.compile(model)
    compiled(tokens)
    compiled.apply(random_removal(compiled, 0.4, seed=0))
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(compiled.kept_mask(name))

    found = compiled.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    expected = masked.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, expected)
    keys = compiled(tokens).past_key_values.layers[0].keys
    assert keys.shape[-1] < 10
