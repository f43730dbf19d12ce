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


def gpt2() -> nn.Module:
    """Its config leaves the width of the FFN to the class (None)."""
    config = hf.GPT2Config(
        n_embd=24, n_layer=2, n_head=3, vocab_size=31, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    """Stacked experts; the width of a head is hidden_size / num_attention_heads unless it is said."""
    config = hf.MixtralConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    return hf.MixtralForCausalLM(config)


def deepseek() -> nn.Module:
    """Low-rank keys and values (MLA)."""
    config = hf.DeepseekV2Config(
        hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=31, first_k_dense_replace=2, kv_lora_rank=14, q_lora_rank=18,
        qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=10, n_routed_experts=4, n_shared_experts=1,
    )  # fmt: skip
    return hf.DeepseekV2ForCausalLM(config)


def shared() -> nn.Module:
    """Shared experts, twice as wide as a routed one by the same field."""
    config = hf.DeepseekV3Config(
        hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=31, first_k_dense_replace=1, kv_lora_rank=14, q_lora_rank=18,
        qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=10, n_routed_experts=4, n_shared_experts=2,
        moe_intermediate_size=20, num_experts_per_tok=2, n_group=1, topk_group=1,
    )  # fmt: skip
    return hf.DeepseekV3ForCausalLM(config)


class LayeredConfig(hf.PreTrainedConfig):
    """A config whose classes build every layer from what ``per_layer_config`` or a list says of it."""

    model_type = "layered"
    vocab_size: int = 31
    hidden_size: int = 12
    num_hidden_layers: int = 3
    intermediate_size: int = 20
    adapter_size: list[int] | None = None


class LayeredModel(hf.PreTrainedModel):
    """Two FFNs a layer."""

    config_class = LayeredConfig

    def __init__(self, config: LayeredConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        widths = zip(config.per_layer_config, config.adapter_size or [], strict=True)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(12, n), nn.ReLU(), nn.Linear(n, 12))
                for n in (layer.intermediate_size, adapter)
            )
            for layer, adapter in widths
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for first, second in self.layers:
            x = x + first(x)
            x = x + second(x)
        return x


def smaller(make: Callable[[], nn.Module], ratio: float, **settings: Any) -> ecospa_fx.CompiledModel:
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(make().eval())
    compiled(input_ids=TOKENS, labels=TOKENS).loss.backward()
    compiled.sparsify(ratio=ratio, **settings)
    return compiled


CASES = {
    "ffn": (llama, 0.3, {}, {"num_attention_heads": 8}),
    "heads": (llama, 0.55, {"remove_heads": True}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "width left to the class": (gpt2, 0.3, {}, {"n_head": 3}),
    "experts": (mixtral, 0.5, {"remove_heads": True, "round_to": 4}, {"num_local_experts": 3, "head_dim": 6}),
    "ranks": (deepseek, 0.3, {"kinds": ("lowrank",)}, {"intermediate_size": 44}),
    "routed and shared experts": (shared, 0.2, {"round_to": 4}, {"n_shared_experts": 2}),
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


def layered() -> ecospa_fx.CompiledModel:
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(LayeredModel(LayeredConfig(adapter_size=[16] * 3)).eval(), args=(TOKENS,))
    compiled(TOKENS).square().sum().backward()
    return compiled


def test_widths_of_single_layers(tmp_path: Path) -> None:
    compiled = layered()
    compiled.sparsify(ratio=0.4)
    widths = [
        [p.shape[0] for n, p in compiled.named_parameters() if n.endswith(f"{i}.0.weight")] for i in (0, 1)
    ]
    assert len({*widths[0]}) > 1
    compiled.to_native().save_pretrained(tmp_path)
    hf.AutoConfig.register("layered", LayeredConfig, exist_ok=True)
    hf.AutoModel.register(LayeredConfig, LayeredModel, exist_ok=True)
    loaded = hf.AutoModel.from_pretrained(tmp_path)
    assert [c.intermediate_size for c in loaded.config.per_layer_config] == widths[0]
    assert loaded.config.adapter_size == widths[1]
    torch.testing.assert_close(loaded(TOKENS), compiled(TOKENS), rtol=1e-4, atol=1e-5)


def test_a_class_that_takes_no_widths_of_single_layers() -> None:
    message = r"Widths of single layers: LlamaForCausalLM does not take intermediate_size of layer 0="
    with pytest.raises(NativeError, match=message):
        smaller(llama, 0.3, kinds=("ffn",)).to_native()


def test_widths_that_kernels_do_not_take() -> None:
    with pytest.raises(NativeError, match=r"own code fails \(strides.*round_to=8"):
        smaller(mixtral, 0.3, layout="native", kinds=("ffn",), round_to=9).to_native()


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
