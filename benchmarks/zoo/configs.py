"""Tiny configs: every config of transformers, shrunk field by field."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

from transformers import PreTrainedConfig

from benchmarks.zoo.overrides import OVERRIDES
from benchmarks.zoo.shrink import HEAD_DIM, HEADS, VOCABULARY, shrunk, words

ALL_KV_HEADS, LARGE_IMAGE, OWN_HEAD_DIM, FEW_FIELDS, GROUPS_OF_FOUR = 1, 2, 4, 8, 16

_SKIPPED = words(
    "transformers_version architectures output_hidden_states return_dict dtype chunk_size_feed_forward "
    "is_encoder_decoder id2label label2id problem_type"
)
_TOKEN = words(r".*(token_id|token_index|token_ids|_id|_index)")
_LAYER_TYPES = words(
    r".*(layer_types|layers_block_type|block_types|layer_type|indexer_types|attn_types|attention_types.*)"
)
_ESSENTIAL = words(r".*(layers?|vocab|depth|position|experts|image_size|intermediate|ffn).*")
_HEAD_COUNT = words(r".*(num_attention_heads|num_heads|n_heads?|attention_heads)")
_HEAD_SIZE = words(r"((global_)?head_dim|.*attention_head_size|d_kv|.*_head_dim|head_size|kv_channels).*")

Fields = dict[str, Any]


def tiny_config(
    cls: type[PreTrainedConfig], profile: int = 0, default: PreTrainedConfig | None = None
) -> PreTrainedConfig:
    """A small config of ``cls``, its sub-configs included.

    Args:
        cls: the config class.
        profile: sum of: 1 as many KV heads as heads, 2 images of 64 pixels, 4 the model's own head size,
            8 only layers and vocabulary shrink, 16 eight heads of 8 dims with two KV heads.
        default: the config to start from.
    """
    default = cls() if default is None else default
    fields = _shrunk_fields(cls, default, profile)
    _fewer_layer_types(cls, default, fields)
    _tokens_in_vocabulary(cls, default, fields)
    _rope_sections(cls, default, fields, profile)
    for name in ("vision_feature_layer", "deepstack_visual_indexes"):
        value = read(default, name) if name in field_names(cls) else None
        if isinstance(value, int) and not -3 <= value <= 2:
            fields[name] = -1
        elif value and name == "deepstack_visual_indexes":
            fields[name] = [0]
    return cls(**{**fields, **OVERRIDES.get(getattr(cls, "model_type", ""), {})})


def without_cache(config: PreTrainedConfig) -> PreTrainedConfig:
    """Switch caches off, in sub-configs too."""
    for c in [config, *sub_configs(config)]:
        if hasattr(c, "use_cache"):
            try:
                c.use_cache = False
            except AttributeError:
                continue
    return config


def sub_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """All configs inside a config."""
    inside = [v for v in vars(config).values() if isinstance(v, PreTrainedConfig)]
    return [c for sub in inside for c in (sub, *sub_configs(sub))]


def field_names(cls: type) -> list[str]:
    """Names of a config's fields."""
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls)]
    return [p for p in inspect.signature(cls).parameters if p not in ("self", "kwargs")]


def read(config: PreTrainedConfig, name: str) -> Any:
    """A field's value; fields that differ from layer to layer raise, and give their default."""
    try:
        return getattr(config, name, None)
    except Exception:
        fields = dataclasses.fields(type(config)) if dataclasses.is_dataclass(config) else ()
        known = {f.name: f.default for f in fields}
        value = known.get(name, dataclasses.MISSING)
        return None if value is dataclasses.MISSING else value


def _shrunk_fields(cls: type[PreTrainedConfig], default: PreTrainedConfig, profile: int) -> Fields:
    context = {"image": 64 if profile & LARGE_IMAGE else 32}
    fields: Fields = {}
    for name in field_names(cls):
        value = read(default, name)
        if _SKIPPED.fullmatch(name):
            continue
        if isinstance(value, PreTrainedConfig):
            fields[name] = tiny_config(type(value), profile, value)
            continue
        small = shrunk(name, value, context)
        if small is not None and small != value:
            fields[name] = small
    return _with_profile(fields, profile)


def _with_profile(fields: Fields, profile: int) -> Fields:
    if profile & ALL_KV_HEADS:
        fields |= {f: HEADS for f in fields if "key_value_heads" in f or "kv_heads" in f}
    if profile & GROUPS_OF_FOUR:
        fields |= {f: 8 for f, v in fields.items() if v == HEADS and _HEAD_COUNT.fullmatch(f)}
        fields |= {f: 8 for f, v in fields.items() if v == HEAD_DIM and _HEAD_SIZE.fullmatch(f)}
    if profile & OWN_HEAD_DIM:
        fields = {f: v for f, v in fields.items() if f != "head_dim" and "head_size" not in f}
    if profile & FEW_FIELDS:
        fields = {
            f: v for f, v in fields.items() if _ESSENTIAL.fullmatch(f) or isinstance(v, PreTrainedConfig)
        }
    return fields


def _fewer_layer_types(cls: type[PreTrainedConfig], default: PreTrainedConfig, fields: Fields) -> None:
    """One layer of each kind, and two at least."""
    lists = {f: read(default, f) for f in field_names(cls) if _LAYER_TYPES.fullmatch(f)}
    lists = {f: v for f, v in lists.items() if isinstance(v, (list, tuple)) and v}
    lists = {f: v for f, v in lists.items() if all(isinstance(x, str) for x in v)}
    if not lists:
        return
    depth = min(len(v) for v in lists.values())
    chosen = {list(v[:depth]).index(kind) for v in lists.values() for kind in set(v[:depth])}
    others = (i for i in range(depth) if i not in chosen)
    while len(chosen) < min(2, depth):
        chosen.add(next(others))
    for name, value in lists.items():
        fields[name] = type(value)(value[i] for i in sorted(chosen))
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if name in field_names(cls):
            fields[name] = len(chosen)
            break


def _tokens_in_vocabulary(cls: type[PreTrainedConfig], default: PreTrainedConfig, fields: Fields) -> None:
    """Special tokens move to the end of the small vocabulary."""
    size = fields.get("vocab_size", read(default, "vocab_size"))
    if not isinstance(size, int) or not 8 <= size <= VOCABULARY:
        size = VOCABULARY
    token = size - 1
    for name in field_names(cls):
        value = read(default, name)
        if not _TOKEN.fullmatch(name) or isinstance(value, bool):
            continue
        if isinstance(value, int) and value >= size - 12 and "layer" not in name:
            fields[name], token = token, token - 1
        elif _are_ids(value) and max(value) >= size - 12:
            fields[name], token = [token], token - 1


def _are_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(x, int) for x in value)


def _rope_sections(
    cls: type[PreTrainedConfig], default: PreTrainedConfig, fields: Fields, profile: int
) -> None:
    """The sections of a multi-axis RoPE add up to half the head."""
    hidden = fields.get("hidden_size", read(default, "hidden_size"))
    heads = fields.get("num_attention_heads", read(default, "num_attention_heads"))
    head_dim = fields.get("head_dim") or (8 if profile & GROUPS_OF_FOUR else HEAD_DIM)
    if isinstance(hidden, int) and isinstance(heads, int) and heads and "head_dim" not in fields:
        head_dim = hidden // heads
    for name in ("rope_parameters", "rope_scaling"):
        value = read(default, name)
        if isinstance(value, dict) and _fit_sections(value := copy.deepcopy(value), head_dim // 2):
            fields[name] = value
    sections = read(default, "mrope_section")
    if "mrope_section" in field_names(cls) and isinstance(sections, (list, tuple)):
        fields["mrope_section"] = _sections(len(sections), head_dim // 2)


def _fit_sections(rope: dict[str, Any], half: int) -> bool:
    """Change ``rope`` in place; whether anything had to change."""
    changed = False
    for part in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
        if isinstance(part.get("mrope_section"), (list, tuple)) and part["mrope_section"]:
            part["mrope_section"] = _sections(len(part["mrope_section"]), half)
            changed = True
        for name in ("long_factor", "short_factor"):
            if isinstance(part.get(name), (list, tuple)):
                part[name] = [1.0] * half
                changed = True
    return changed


def _sections(count: int, half: int) -> list[int]:
    sections = [half // count] * count
    sections[-1] += half - sum(sections)
    return sections
