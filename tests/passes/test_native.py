"""Native write-back: a plain model of the original class, which loads and runs without this library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import ecospa_fx
from ecospa_fx import NativeError, PlanError
from ecospa_fx.testing import random_removal

TOKENS = torch.randint(3, 31, (2, 7), generator=torch.Generator().manual_seed(0))


def llama() -> nn.Module:
    config = hf.LlamaConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=6, vocab_size=31, tie_word_embeddings=True,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def bart() -> nn.Module:
    config = hf.BartConfig(
        vocab_size=31, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=44, decoder_ffn_dim=44, max_position_embeddings=16,
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config)


def smaller(make: Callable[[], nn.Module], ratio: float, **settings: Any) -> ecospa_fx.CompiledModel:
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(make().eval())
    compiled(input_ids=TOKENS, labels=TOKENS).loss.backward()
    compiled.sparsify(ratio=ratio, **settings)
    return compiled


CASES = {
    "ffn": (llama, 0.3, {}, {"num_attention_heads": 8}),
    "heads": (llama, 0.55, {"remove_heads": True}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "encoder-decoder": (bart, 0.3, {}, {"decoder_attention_heads": 3}),
}


@pytest.mark.parametrize(("make", "ratio", "settings", "expected"), CASES.values(), ids=CASES)
def test_it_loads_without_this_library(
    make: Callable[[], nn.Module], ratio: float, settings: Any, expected: dict[str, int], tmp_path: Path
) -> None:
    compiled = smaller(make, ratio, layout="native", **settings)
    plain = compiled.to_native()
    assert type(plain) is type(compiled.source)
    assert {n: getattr(plain.config, n) for n in expected} == expected
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in compiled.parameters()}
    plain.save_pretrained(tmp_path)
    auto = hf.AutoModelForSeq2SeqLM if make is bart else hf.AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, wanted = (m(input_ids=TOKENS, labels=TOKENS).logits for m in (loaded, compiled))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        plain.generate(TOKENS, max_new_tokens=3), loaded.generate(TOKENS, max_new_tokens=3)
    )


def test_two_rounds() -> None:
    compiled = smaller(llama, 0.2, layout="native")
    compiled(input_ids=TOKENS, labels=TOKENS).loss.backward()
    compiled.sparsify(ratio=0.2, layout="native")
    assert compiled.to_native().config.intermediate_size < 44


def test_widths_that_no_config_says() -> None:
    compiled = smaller(llama, 0.3)
    with pytest.raises(NativeError, match=r'no config of LlamaForCausalLM says.* plan with layout="native"'):
        compiled.to_native()
    with pytest.raises(PlanError, match="layers keep different counts already"):
        compiled.sparsify(
            {n: torch.ones_like(p) for n, p in compiled.named_parameters()}, 0.1, layout="native"
        )


def test_widths_that_fit_and_mean_something_else() -> None:
    """Each head keeps another half of its rotated dims: all shapes are those of a smaller head_dim."""
    compiled = ecospa_fx.compile(llama().eval())
    compiled(TOKENS)
    compiled.apply(random_removal(compiled, 0.4, kinds=("qk", "vo")))
    with pytest.raises(NativeError):
        compiled.to_native()


def test_a_model_without_a_config() -> None:
    with pytest.raises(NativeError, match="Linear has no config"):
        ecospa_fx.compile(nn.Linear(3, 3)).to_native()


def test_settings() -> None:
    with pytest.raises(PlanError, match="layout is 'x'"):
        ecospa_fx.PlanSettings(layout="x")
