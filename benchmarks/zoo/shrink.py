"""Shrinking a config field: rules on its name and its default value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

VOCABULARY, HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 99, 64, 96, 4, 2, 16

Context = Mapping[str, int]
Shrink = Callable[[Any, Context], Any]


@dataclass(frozen=True)
class FieldRule:
    """The value of every field whose name matches and whose default has the type."""

    pattern: re.Pattern[str]
    kinds: tuple[type, ...]
    value: Shrink

    def applies(self, name: str, default: Any) -> bool:
        """Whether the rule decides about ``name``."""
        if default is None or isinstance(default, bool) or not isinstance(default, self.kinds):
            return False
        if isinstance(default, (list, tuple)) and not all(_is_number(x) for x in default):
            return False
        return self.pattern.fullmatch(name) is not None


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def words(text: str) -> re.Pattern[str]:
    """A pattern from alternatives between blanks."""
    return re.compile("|".join(text.split()))


def _rule(names: str, value: Any, *kinds: type) -> FieldRule:
    return FieldRule(words(names), kinds or (int,), value if callable(value) else lambda v, c: value)


def _cap(limit: int) -> Shrink:
    return lambda v, c: min(v, limit)


def _one_or(number: int) -> Shrink:
    return lambda v, c: 1 if v == 1 else number


def _in_proportion(base: int) -> Shrink:
    """``[96, 192, 384]`` becomes ``[base, 2 base, 4 base]``."""
    return lambda v, c: [max(8, int(base * x / v[0])) // 8 * 8 for x in v]


def _each(function: Callable[[Any, Context], Any]) -> Shrink:
    return lambda v, c: type(v)([function(x, c) for x in v])


def _depths(v: Any, c: Context) -> list[int]:
    return [min(x, 2 if i == 0 else 1) if x else x for i, x in enumerate(v)]


def _image(v: int, c: Context) -> int:
    return min(v, c["image"])


def _patch(v: int, c: Context) -> int:
    return 8 if v > 8 else v


IGNORED = words(
    "num_labels patch_stride num_channels in_channels upsample.* downsample.* kernel_size .*_kernel_size "
    "num_feature_levels projection_dim_ eos_.* num_position_embeddings max_position_embeddings_"
)

ATTENTION = [
    _rule(
        "num_key_value_heads num_kv_heads n_head_kv .*num_key_value_heads kv_heads num_attention_groups "
        "multi_query_group_num n_kv_heads",
        _one_or(KV_HEADS),
    ),
    _rule("linear_num_key_heads .*num_k_heads", 2),
    _rule("linear_num_value_heads .*num_v_heads", 4),
    _rule("mamba_n_heads mamba_num_heads n_mamba_heads", 8),
    _rule("mamba_d_head mamba_head_dim", 16),
    _rule(
        ".*num_attention_heads num_heads n_heads? .*_attention_heads attention_heads n_attn_heads "
        "num_attn_heads nhead .*num_heads head_count",
        _one_or(HEADS),
    ),
    _rule("index_n_heads index_num_heads", 2),
    _rule("index_head_dim", 16),
    _rule("index_topk .*_topk_tokens", 4),
    _rule(
        "(global_)?head_dim .*attention_head_size d_kv .*_head_dim attention_key_size head_size dim_head "
        "attention_value_size .*attention_head_dim kv_channels d_head .*head_dim_.* swa_head_dim",
        HEAD_DIM,
    ),
    _rule("qk_rope_head_dim", 8),
    _rule("qk_nope_head_dim v_head_dim qk_head_dim", HEAD_DIM),
    _rule("rotary_dim rotary_embedding_dim rope_dim", _cap(8)),
    _rule("q_lora_rank", 24),
    _rule("kv_lora_rank o_lora_rank .*lora_rank", 32),
    _rule("lora_rank.* .*lora_r", 8),
]
FEED_FORWARD = [
    _rule(
        "(moe|shared|shared_expert|expert|.*moe|routed_expert)_(intermediate|ffn_hidden|hidden|ffn)_(size|"
        "dim) .*expert.*intermediate.* .*moe_intermediate.* expert_ffn.* ffn_expert.*",
        32,
    ),
    _rule(
        ".*intermediate_(size|dim) .*ffn_dim d_ff ffn_hidden_size n_inner .*ffn_hidden.* ffn_dim "
        "dim_feedforward d_inner .*_mlp_dim mlp_dim .*feedforward_dim dim_ff .*mlp_hidden.* hidden_dim_ff "
        "inner_dim conformer_ffn.* .*_ffn_size block_ff_dim pffn_.*",
        FFN,
    ),
    _rule("intermediate_size", lambda v, c: min(v[0], FFN), list, tuple),
    _rule(
        "num_experts_per_tok.* moe_top_?k top_k_experts moe_k num_selected_experts num_experts_per_token "
        "num_active_experts moe_num_active.* router_top_k experts_top_k .*experts_per_tok.*",
        _cap(2),
    ),
    _rule(
        "(num|n|moe_num)_?(local_|routed_|shared_|total_|zero_|dense_)?experts? .*num_experts "
        "n_routed_experts num_moe_experts .*_num_local_experts num_experts_.*",
        _cap(4),
    ),
    _rule("n_shared_experts num_shared_experts moe_num_shared_experts", _cap(1)),
    _rule("n_group topk_group num_expert_group n_groups?_experts?", 1),
    _rule(
        "first_k_dense_replace num_dense_layers num_first_dense.* moe_layer_start_index n_dense_layers "
        "first_k_dense num_dense_.*",
        _cap(1),
    ),
    _rule(
        "decoder_sparse_step encoder_sparse_step moe_layer_freq interleave_moe_layer_step moe_layer_interval "
        "expert_layer_period moe_every_n_layers",
        1,
    ),
    _rule("num_sparse_(encoder|decoder)_layers", 2),
]
DEPTH = [
    _rule(
        ".*num_(hidden_|encoder_|decoder_|attention_|transformer_|conformer_)?layers n_layers? "
        ".*(encoder|decoder|text|vision|audio)_layers num_layers_.* depth num_blocks .*_num_(hidden_)?layers "
        "num_decoder_layers num_encoder_layers .*_depth num_block num_hidden_blocks layers "
        "num_stacked_layers",
        _cap(2),
    ),
    _rule("num_mtp_layers num_nextn_predict_layers mtp_num.* .*mtp.*layers", 0),
    _rule("max_window_layers num_hidden_groups num_kv_shared_layers", _cap(0)),
]
RECURRENT = [
    _rule("conv_kernel_size conv_kernel d_conv mamba_d_conv linear_conv_kernel_dim conv_L_cache", _cap(4)),
    _rule(
        "state_size mamba_d_state ssm_state_size d_state mamba_state_size mamba_state_dim ssm_d_state",
        _cap(8),
    ),
    _rule("mamba_n_groups n_groups mamba_num_groups ssm_n_groups", 1),
    _rule("time_step_rank mamba_dt_rank dt_rank", 4),
    _rule("(mamba_)?chunk_size .*_chunk_size", _cap(8)),
    _rule("mamba_d_ssm mamba_intermediate_size .*_d_inner", 128),
    _rule("lru_width .*lru.*width", HIDDEN),
]
WIDTH = [
    _rule(
        "(.*_)?(hidden_size|hidden_dim|d_model|n_embd|embed_dim|dim|model_dim|width|projection_dim|"
        "projection_size|emb_dim|embed_size|hidden_channels|embedding_dim|proj_dim|encoder_dim|decoder_dim|"
        "fusion_dim|inner_channels|out_dim|latent_dim|mlp_dim|query_dim|.*_embed_size|hidden_units|"
        "out_hidden_size|output_dim|d_latents|.*embed_dim|output_size|embedding_size|d_embed|z_dim|"
        ".*hidden_size|.*projection_dim|.*hidden_dim|classifier_proj_size|bottleneck_dim|feature_dim|"
        "out_feature_size|text_embed_dim|.*_features_dim|codebook_dim|d_hidden|feature_size|fpn_feature_size|"
        "fusion_hidden_size|encoder_in_channels_|base_dim|hidden_width|out_channels|.*output_channels)",
        _cap(HIDDEN),
    ),
    _rule("hidden_size_per_layer_input", 16),
    _rule("laurel_rank low_rank.* .*_rank", _cap(8)),
    _rule(
        "hidden_sizes embed_dims encoder_hidden_sizes neck_hidden_sizes decoder_hidden_sizes .*hidden_sizes "
        "dims .*embed_dims layer_dims channels",
        lambda v, c: _in_proportion(16)(v, c) if len(v) and v[0] >= 16 else v,
        list, tuple,
    ),
    _rule(
        "depths encoder_depths num_blocks layers_per_stage depth_multipliers_ stage_depths .*_depths "
        "num_layers blocks encoder_num_layers",
        _depths, list, tuple,
    ),
    _rule(
        "num_heads num_attention_heads encoder_num_heads .*num_heads",
        lambda v, c: [max(1, x // math.gcd(*v)) for x in v],
        list, tuple,
    ),
    _rule("conv_dim .*conv_dim tdnn_dim", lambda v, c: [32] * len(v), list, tuple),
    _rule("num_conv_pos_embeddings", 16),
    _rule("num_conv_pos_embedding_groups", 2),
    _rule("num_codevectors_per_group", 8),
    _rule("codevector_dim proj_codevector_dim", 32),
]  # fmt: skip
EXTENT = [
    _rule(
        "image_size img_size input_image_size .*image_size input_size resolution .*_img_size crop_size",
        _image,
    ),
    _rule("image_size img_size input_size input_image_size .*image_size", _each(_image), list, tuple),
    _rule("patch_size .*patch_size vision_patch_size", _patch),
    _rule("patch_size .*patch_size", _each(_patch), list, tuple),
    _rule("window_size .*window_size", _cap(4)),
    _rule(
        "sliding_window attention_window_size .*sliding_window local_window.* window attention_window "
        "num_frames num_input_frames",
        _cap(4),
    ),
    _rule("attention_window", lambda v, c: [4] * 2, list, tuple),
    _rule(
        "max_position_embeddings n_positions max_sequence_length max_seq_len .*max_position_embeddings n_ctx "
        "max_position.* seq_length max_length max_seq_length context_len context_length max_text_len.*",
        _cap(128),
    ),
    _rule("max_source_positions", 32),
    _rule("max_target_positions", 64),
    _rule("num_mel_bins num_mel.* n_mels feature_size_mel input_feat_per_channel mel_bins n_mel.*", _cap(16)),
    _rule(
        "num_queries num_query_tokens num_latents n_queries .*num_latents num_object_queries .*_num_queries "
        "num_learned_.* num_image_tokens image_seq_length mm_tokens_per_image num_query.*",
        _cap(16),
    ),
    _rule("num_buckets num_hashes", 2),
    _rule("default_num_lookahead_tokens", 1),
    _rule("ngram block_size", _cap(8)),
    _rule("vocab_size_per_layer_input", VOCABULARY),
]
RULES = [
    _rule(
        "vocab_size .*_vocab_size vocab_size_.* n_vocab vocabulary_size num_tokens .*text_vocab.* "
        "codebook_size audio_vocab.* n_words",
        _cap(VOCABULARY),
    ),
    _rule("type_vocab_size", _cap(4)),
    *ATTENTION, *FEED_FORWARD, *DEPTH, *RECURRENT, *WIDTH, *EXTENT,
]  # fmt: skip


def shrunk(name: str, default: Any, context: Context) -> Any:
    """The small value of a field, or None where it stays."""
    if IGNORED.fullmatch(name):
        return None
    rule = next((r for r in RULES if r.applies(name, default)), None)
    if rule is None:
        return None
    value = rule.value(default, context)
    return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
