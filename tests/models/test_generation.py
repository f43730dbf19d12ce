"""Generation with smaller graphs and smaller caches: token for token what the masked model generates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.testing import random_removal

TOKENS = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) >= torch.tensor([[3], [0], [1]])).long()
PADDED = {"inputs": TOKENS, "attention_mask": MASK}
SOUND = {"input_features": torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(1))}
SIZES = {"vocab_size": 97, "pad_token_id": 0, "max_position_embeddings": 64}


def llama(groups: int = 2) -> nn.Module:
    config = hf.LlamaConfig(
        hidden_size=60, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=groups, **SIZES,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).double()


def one_key_head() -> nn.Module:
    return llama(groups=1)


def gemma2() -> nn.Module:
    """The window is shorter than the prompt, in one of two layers; in double precision it gives NaN."""
    config = hf.Gemma2Config(
        hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, sliding_window=5, attn_implementation="eager", **SIZES,
    )  # fmt: skip
    return hf.Gemma2ForCausalLM(config)


def t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=97, d_model=36, d_kv=10, d_ff=44, num_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config).double()


def whisper() -> nn.Module:
    config = hf.WhisperConfig(
        vocab_size=97, num_mel_bins=12, d_model=36, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=44, decoder_ffn_dim=44,
        max_source_positions=10, max_target_positions=40, decoder_start_token_id=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=3, begin_suppress_tokens=None,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], int]] = {
    "llama": (llama, PADDED, 2),
    "one key head": (one_key_head, PADDED, 2),
    "gemma2": (gemma2, PADDED, 2),
    "t5": (t5, PADDED, 3),
    "whisper": (whisper, SOUND, 3),
}
HOWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "longer": {"max_new_tokens": 9},
    "sampled": {"do_sample": True, "temperature": 2.0},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static"},
}
Pair = tuple[CompiledModel, nn.Module, dict[str, Tensor], int]


@pytest.fixture(name="pair", scope="module", params=FAMILIES)
def _pair(request: pytest.FixtureRequest) -> Pair:
    make, inputs, signatures = FAMILIES[request.param]
    torch.manual_seed(0)
    model = make().eval()
    model.generation_config.eos_token_id = None
    masked = copy.deepcopy(model)
    compiled = ecospa_fx.compile(model)
    if model.config.is_encoder_decoder:
        call = {"input_ids" if n == "inputs" else n: t for n, t in inputs.items()}
        compiled(**call, decoder_input_ids=TOKENS)
    compiled.generate(**inputs, max_new_tokens=3)
    compiled.apply(random_removal(compiled, 0.4, seed=0))
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(compiled.kept_mask(name))
    return compiled, masked, inputs, signatures


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_tokens_equal_the_masked_models(pair: Pair, how: dict[str, Any]) -> None:
    compiled, masked, inputs, signatures = pair
    settings = {"max_new_tokens": 6, **how}
    torch.manual_seed(3)
    expected = masked.generate(**inputs, **settings)
    torch.manual_seed(3)
    assert torch.equal(compiled.generate(**inputs, **settings), expected)
    assert len(list(compiled.signatures)) == signatures


def test_caches_are_as_small_as_the_weights(pair: Pair) -> None:
    compiled, _, inputs, _ = pair
    found = compiled.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    config = compiled.config.get_text_config(decoder=True)
    static = hf.StaticCache(config=config, max_cache_len=32)
    if not compiled.config.is_encoder_decoder:
        compiled.generate(**inputs, max_new_tokens=4, past_key_values=static)
        assert torch.equal(static.layers[-1].keys[:, :, :12], found.past_key_values.layers[-1].keys)
        assert static.layers[-1].keys.shape[-2] == 32
    inner = getattr(found.past_key_values, "self_attention_cache", found.past_key_values)
    assert all(layer.keys.shape[-1] < 10 for layer in inner.layers)


@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_layers_with_a_window_keep_no_more(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = gemma2().eval()
    model.generation_config.eos_token_id = None
    masked = copy.deepcopy(model)
    compiled = ecospa_fx.compile(model)
    compiled.generate(**PADDED, max_new_tokens=3)
    compiled.apply(random_removal(compiled, 0.4, seed=0))
    for name, parameter in masked.named_parameters():
        parameter.data.mul_(compiled.kept_mask(name))
    settings = {**PADDED, **how, "max_new_tokens": 12}
    found = compiled.generate(**settings, return_dict_in_generate=True)
    assert torch.equal(found.sequences, masked.generate(**settings))
    sliding, whole = found.past_key_values.layers
    assert (sliding.keys.shape[-2], sliding.get_seq_length()) == (4, 20)
    assert whole.get_seq_length() == 20


def test_a_call_after_the_window_is_full() -> None:
    model = gemma2().eval()
    compiled = ecospa_fx.compile(model)
    cache = hf.DynamicCache(config=model.config)
    whole = compiled(TOKENS, use_cache=True).logits
    found = [
        compiled(part, past_key_values=cache, use_cache=True).logits for part in TOKENS.split((7, 1, 1), 1)
    ]
    assert [layer.get_seq_length() for layer in cache.layers] == [9, 9]
    assert cache.layers[0].keys.shape[-2] == 4
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)


def test_the_callers_cache_is_filled() -> None:
    model = llama().eval()
    compiled = ecospa_fx.compile(model)
    cache = hf.DynamicCache(config=model.config)
    whole = compiled(TOKENS, use_cache=True)
    first = compiled(TOKENS[:, :5], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache
    assert cache.get_seq_length() == 5
    second = compiled(TOKENS[:, 5:], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(second.logits, whole.logits[:, 5:])


def test_it_assists_another_model() -> None:
    model = llama().eval()
    draft = ecospa_fx.compile(copy.deepcopy(model))
    draft(TOKENS)
    draft.apply(random_removal(draft, 0.3))
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(TOKENS[:1], **how)  # type: ignore[operator]
    assert torch.equal(model.generate(TOKENS[:1], assistant_model=draft, **how), expected)  # type: ignore[operator]


def test_a_model_that_cannot_generate() -> None:
    with pytest.raises(ecospa_fx.CaptureError, match="Linear has no generate"):
        ecospa_fx.compile(nn.Linear(3, 3)).generate()
