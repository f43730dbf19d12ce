"""Told: what one field of a config speaks of is planned together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf

import ecospa_fx
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.passes.told import told

TOKENS = torch.randint(3, 31, (2, 7), generator=torch.Generator().manual_seed(0))


def found(model: Any) -> tuple[CouplingGraph, CouplingGraph, list[str]]:
    compiled = ecospa_fx.compile(model.eval())
    compiled(TOKENS)
    return compiled.couplings, *told(compiled.couplings, model, compiled.dense_shapes)


def bundles(graph: CouplingGraph, name: str) -> dict[int, list[int]]:
    """Bundles of the couples whose name holds ``name``: the sizes of their segments."""
    result: dict[int, list[int]] = {}
    for couple in graph.couples:
        if name in couple.name:
            segments, counts = np.unique(graph.segment_of[couple.units], return_counts=True)
            for segment, count in zip(segments, counts, strict=True):
                result.setdefault(int(graph.bundle_of[segment]), []).append(int(count))
    return result


def deepseek(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 31, "first_k_dense_replace": 1, "kv_lora_rank": 14,
        "q_lora_rank": 18, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
        "n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 20, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**sizes | changes))


def test_shared_experts_go_with_the_routed_ones() -> None:
    """They are twice as wide under the same field: two units of them go with one of each expert."""
    before, after, untold = found(deepseek())
    assert [list(b) for b in bundles(before, "shared_experts").values()] == [[40]]
    [(bundle, sizes)] = bundles(after, "shared_experts").items()
    assert sizes == [20, 20]
    assert {*bundles(after, "mlp")} >= {bundle}
    routed = [c for c in after.couples if "mlp.experts" in c.name and c.kind == "ffn"]
    assert {int(after.bundle_of[s]) for c in routed for s in after.segment_of[c.units]} == {bundle}
    assert set(bundles(after, "layers.0.mlp")) != {bundle}
    assert {after[name].kind for name in untold} <= {"residual"}


def test_ranks_have_fields_of_their_own() -> None:
    _, after, _ = found(deepseek(q_lora_rank=14))
    named = {c.name: int(after.bundle_of[after.segment_of[c.units[0]]]) for c in after if c.kind == "lowrank"}
    assert len(set(named.values())) == 2


def test_a_width_of_which_no_field_speaks() -> None:
    config = hf.WhisperConfig(
        vocab_size=60, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=44, decoder_ffn_dim=44, num_mel_bins=8,
        max_source_positions=16, max_target_positions=32, decoder_start_token_id=1, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config).eval()
    compiled = ecospa_fx.compile(model)
    inputs = {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": TOKENS}
    compiled(**inputs).logits.square().sum().backward()
    _, untold = told(compiled.couplings, model, compiled.dense_shapes)
    assert [compiled.couplings[name].kind for name in untold] == ["conv", "residual"]
    report = compiled.sparsify(ratio=0.2, layout="native")
    assert [loss.lost for loss in report.losses if loss.kind == "conv"] == [0]
    assert compiled.to_native().config.encoder_ffn_dim < 44
