"""Which family an architecture belongs to, told from its modules, config and signature."""

from __future__ import annotations

import inspect
import re

from torch import nn

from benchmarks.zoo.configs import sub_configs

FAMILIES = (
    "dense decoder RoPE",
    "dense decoder non-RoPE",
    "MoE",
    "MLA",
    "SSM/hybrid",
    "encoder",
    "encoder-decoder",
    "multimodal",
    "vision",
    "audio",
    "other",
)

_RECURRENT = re.compile(
    "mamba|ssm|rwkv|deltanet|gateddelta|lightning|recurrent|xlstm|mlstm|shortconv|lru|linearattention|kda"
)
_EXPERTS = re.compile("moe|experts|router|sparsemlp")
_MEDIA = ("pixel_values", "input_features", "input_values", "pixel_values_videos")


def family_of(model: nn.Module, head: str) -> str:
    """The family of a model that was built with the given kind of head."""
    config = model.config
    modules = [type(m).__name__.lower() for m in model.modules()]
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    text = "input_ids" in accepted
    mixed = text and any(k in accepted for k in _MEDIA)
    rope = any("rotary" in m for m in modules)
    if main in ("input_features", "input_values") and not mixed:
        return "audio"
    if main in ("pixel_values", "pixel_values_videos") and not text:
        return "vision"
    if mixed:
        return "multimodal"
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        return "encoder-decoder"
    if not text and main != "input_ids" and "inputs_embeds" not in accepted:
        return "other"
    if any(_RECURRENT.search(m) for m in modules):
        return "SSM/hybrid"
    if any("kv_lora_rank" in vars(c) for c in [config, *sub_configs(config)]):  # type: ignore[list-item,arg-type]
        return "MLA"
    if any(_EXPERTS.search(m) for m in modules):
        return "MoE"
    if head == "CAUSAL_LM":
        return "dense decoder RoPE" if rope else "dense decoder non-RoPE"
    encoder_head = head in ("MASKED_LM", "SEQUENCE_CLASSIFICATION", "PRETRAINING")
    return "dense decoder RoPE" if rope and "past_key_values" in accepted and not encoder_head else "encoder"
