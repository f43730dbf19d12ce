"""Tiny models of well-known families, and how many units the arithmetic of their configurations promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Inputs = Callable[[int, int], dict[str, Tensor]]
EXACT = 1e-9
UPCAST = 1e-5
"""Where the model itself computes in float32, whatever its weights are."""
SINGLE = 1e-4
"""In float32, where a kernel knows no float64."""

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SPECIAL | {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
SEQ2SEQ = SPECIAL | {
    "vocab_size": 97,
    "d_model": 60,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 52,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Family:
    """A model of the family.

    Attributes:
        model: random weights.
        units: how many units of each kind it has, the residual stream aside.
        inputs: keyword arguments of a call, for a batch size and a length.
        tolerance: relative, between the smaller and the masked model.
        dtype: of the weights.
    """

    model: nn.Module
    units: Mapping[str, int]
    inputs: Inputs
    tolerance: float = EXACT
    dtype: torch.dtype = torch.float64


def text(vocab: int) -> Inputs:
    """Tokens, none of them special."""
    return lambda batch, time: {"input_ids": torch.randint(3, vocab, (batch, time))}


def seq2seq(vocab: int) -> Inputs:
    """Tokens for an encoder and, of another length, for a decoder."""
    return lambda batch, time: {
        "input_ids": torch.randint(3, vocab, (batch, time)),
        "decoder_input_ids": torch.randint(3, vocab, (batch, time + 2)),
    }


def pixels(config: Any) -> Inputs:
    """Images, whose size the position embedding fixes."""
    size = (config.num_channels, config.image_size, config.image_size)
    return lambda batch, time: {"pixel_values": torch.randn(batch, *size).double()}


def rotary(dim: int, turned: int | None = None) -> int:
    """Units of one head's queries and keys: what is turned goes in pairs."""
    turned = dim if turned is None else turned
    return turned // 2 + dim - turned


def decoder(config: Any, pairs: int, dim: int) -> dict[str, int]:
    """Units of a plain stack: couples by layer and key head, and a feed-forward by layer."""
    heads = config.num_hidden_layers * getattr(config, "num_key_value_heads", config.num_attention_heads)
    return {
        "qk": heads * pairs,
        "vo": heads * dim,
        "ffn": config.num_hidden_layers * config.intermediate_size,
    }


def causal(kind: str, pairs: int, tolerance: float = EXACT, dim: int = 10, **changes: Any) -> Family:
    """A causal language model of transformers that is named as usual."""
    config = getattr(hf, f"{kind}Config")(**TEXT | changes)
    model = getattr(hf, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    return Family(model, decoder(config, pairs, dim), text(config.vocab_size), tolerance)


def gpt2() -> Family:
    """Fused projections stored transposed."""
    config = hf.GPT2Config(
        vocab_size=97,
        n_embd=60,
        n_head=6,
        n_layer=2,
        n_inner=44,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    heads = config.n_layer * config.n_embd
    units = {"qk": heads, "vo": heads, "ffn": config.n_layer * config.n_inner}
    return Family(hf.GPT2LMHeadModel(config), units, text(config.vocab_size))


def gptj() -> Family:
    """Pairs of neighbours turn, and only some of them; attention runs beside the feed-forward."""
    config = hf.GPTJConfig(
        vocab_size=97, n_embd=60, n_head=6, n_layer=2, n_inner=44, n_positions=64, rotary_dim=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    heads, dim = config.n_layer * config.n_head, config.n_embd // config.n_head
    units = {
        "qk": heads * rotary(dim, config.rotary_dim),
        "vo": heads * dim,
        "ffn": config.n_layer * config.n_inner,
    }
    return Family(hf.GPTJForCausalLM(config), units, text(config.vocab_size), UPCAST)


def bert() -> Family:
    """An encoder whose output layer is tied to the embedding."""
    config = hf.BertConfig(**TEXT)
    return Family(hf.BertForMaskedLM(config), decoder(config, 10, 10), text(config.vocab_size))


def image(kind: str) -> Family:
    """An encoder of patches."""
    changes = {"image_size": 24, "patch_size": 8, "num_channels": 3, "num_labels": 7}
    size = {k: v for k, v in TEXT.items() if k.startswith(("hidden", "intermediate", "num"))}
    config = getattr(hf, f"{kind}Config")(**size, **changes)
    dim = config.hidden_size // config.num_attention_heads
    model = getattr(hf, f"{kind}ForImageClassification")(config)
    return Family(model, decoder(config, dim, dim), pixels(config))


def t5() -> Family:
    """An encoder and a decoder that share the embedding, with learned relative positions."""
    config = hf.T5Config(
        vocab_size=97, d_model=60, d_kv=10, d_ff=44, num_heads=6, num_layers=2, num_decoder_layers=1,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    attentions = config.num_layers + 2 * config.num_decoder_layers
    inner = attentions * config.num_heads * config.d_kv
    hidden = (config.num_layers + config.num_decoder_layers) * config.d_ff
    units = {"qk": inner, "vo": inner, "ffn": hidden}
    return Family(hf.T5ForConditionalGeneration(config), units, seq2seq(config.vocab_size), UPCAST)


def two_stacks(config: Any) -> dict[str, int]:
    """Units of an encoder and a decoder; the decoder attends twice."""
    inner = (config.encoder_layers + 2 * config.decoder_layers) * config.d_model
    hidden = config.encoder_layers * config.encoder_ffn_dim + config.decoder_layers * config.decoder_ffn_dim
    return {"qk": inner, "vo": inner, "ffn": hidden}


def bart() -> Family:
    """An encoder and a decoder with learned positions."""
    config = hf.BartConfig(**SEQ2SEQ, max_position_embeddings=64, forced_eos_token_id=None)
    return Family(hf.BartForConditionalGeneration(config), two_stacks(config), seq2seq(config.vocab_size))


def whisper() -> Family:
    """Two convolutions, an encoder and a decoder."""
    config = hf.WhisperConfig(**SEQ2SEQ, num_mel_bins=8, max_source_positions=10, max_target_positions=40)

    def inputs(batch: int, time: int) -> dict[str, Tensor]:
        frames = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions)
        tokens = torch.randint(3, config.vocab_size, (batch, time))
        return {"input_features": frames.double(), "decoder_input_ids": tokens}

    units = two_stacks(config) | {"conv": config.d_model}
    return Family(hf.WhisperForConditionalGeneration(config), units, inputs)


def mixtral(experts: str = "grouped_mm") -> Family:
    """Experts, each with hidden units of its own."""
    changes = {"num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
    made = causal("Mixtral", rotary(10), UPCAST, **changes, experts_implementation=experts)
    made = replace(made, units={**made.units, "ffn": 3 * made.units["ffn"], "expert": 6})
    return made if experts == "batched_mm" else replace(made, tolerance=SINGLE, dtype=torch.float32)


def deepseek_v3() -> Family:
    """Projections of low rank; rotated keys that all heads share; dense and routed layers."""
    config = hf.DeepseekV3Config(
        **TEXT, q_lora_rank=14, kv_lora_rank=11, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=7,
        moe_intermediate_size=20, first_k_dense_replace=1, n_routed_experts=4, n_shared_experts=1, n_group=2,
        topk_group=1, num_experts_per_tok=2, num_key_value_heads=6,
    )  # fmt: skip
    layers, heads, dense = config.num_hidden_layers, config.num_attention_heads, config.first_k_dense_replace
    routed = config.n_routed_experts + config.n_shared_experts
    units = {
        "qk": layers * (heads * config.qk_nope_head_dim + rotary(config.qk_rope_head_dim)),
        "vo": layers * heads * config.v_head_dim,
        "lowrank": layers * (config.q_lora_rank + config.kv_lora_rank),
        "ffn": dense * config.intermediate_size + (layers - dense) * routed * config.moe_intermediate_size,
        "expert": (layers - dense) * config.n_routed_experts,
    }
    model = hf.DeepseekV3ForCausalLM(config)
    return Family(model, units, text(config.vocab_size), SINGLE, torch.float32)


def torch_stack(kind: str, attentions: int) -> Family:
    """PyTorch's own encoder or decoder."""
    width, heads, hidden, layers = 60, 6, 44, 2
    layer = getattr(nn, f"Transformer{kind}Layer")(width, heads, hidden, dropout=0.0, batch_first=True)
    options = {"enable_nested_tensor": False} if kind == "Encoder" else {}
    model = getattr(nn, f"Transformer{kind}")(layer, layers, **options)
    first = "src" if kind == "Encoder" else "tgt"

    def inputs(batch: int, time: int) -> dict[str, Tensor]:
        call = {first: torch.randn(batch, time, width).double()}
        more = {"memory": torch.randn(batch, time + 3, width).double()}
        return call if kind == "Encoder" else call | more

    inner = layers * attentions * width
    return Family(model, {"qk": inner, "vo": inner, "ffn": layers * hidden}, inputs)


def torch_attention(**changes: int) -> Family:
    """PyTorch's own attention; keys and values may have widths of their own."""
    model = nn.MultiheadAttention(60, 6, batch_first=True, **changes)

    def inputs(batch: int, time: int) -> dict[str, Tensor]:
        lengths = {"query": time, "key": time + 3, "value": time + 3}
        widths = {"query": 60, "key": model.kdim, "value": model.vdim}
        return {n: torch.randn(batch, lengths[n], widths[n]).double() for n in lengths}

    return Family(model, {"qk": model.embed_dim, "vo": model.embed_dim}, inputs)


FAMILIES: dict[str, Callable[[], Family]] = {
    "llama-gqa": partial(causal, "Llama", rotary(10), UPCAST, num_key_value_heads=2),
    "llama-mqa": partial(causal, "Llama", rotary(10), UPCAST, num_key_value_heads=1),
    "llama-mha": partial(
        causal, "Llama", rotary(10), UPCAST, num_key_value_heads=6, attn_implementation="eager"
    ),
    "gpt2": gpt2,
    "gptj": gptj,
    "gpt_neox": partial(causal, "GPTNeoX", rotary(10, 4), rotary_pct=0.4),
    "phi3": partial(causal, "Phi3", rotary(10), UPCAST, num_key_value_heads=2),
    "qwen3": partial(causal, "Qwen3", rotary(8), UPCAST, dim=8, num_key_value_heads=2, head_dim=8),
    "gemma2": partial(
        causal,
        "Gemma2",
        rotary(8),
        UPCAST,
        dim=8,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    ),
    "gemma3": partial(causal, "Gemma3Text", rotary(8), UPCAST, dim=8, num_key_value_heads=3, head_dim=8),
    "bert": bert,
    "vit": partial(image, "ViT"),
    "deit": partial(image, "DeiT"),
    "t5": t5,
    "bart": bart,
    "whisper": whisper,
    "mixtral": mixtral,
    "mixtral-batched": partial(mixtral, "batched_mm"),
    "deepseek_v3": deepseek_v3,
    "encoder": partial(torch_stack, "Encoder", 1),
    "decoder": partial(torch_stack, "Decoder", 2),
    "attention": torch_attention,
    "attention-kv": partial(torch_attention, kdim=14, vdim=18),
}


def build(name: str) -> Family:
    """The family ``name``, in double precision where it knows that, with every parameter trained."""
    torch.manual_seed(0)
    made = FAMILIES[name]()
    made.model.to(made.dtype).eval().requires_grad_(True)
    return made
