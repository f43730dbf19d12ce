"""Experts of models of transformers: the masked model is eager, with routers written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.masked import widen
from ecospa_fx.testing import random_removal

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(0))
KINDS = ("qk", "vo", "ffn", "expert")


def mixtral(spelling: str = "batched_mm") -> nn.Module:
    config = hf.MixtralConfig(num_local_experts=6, num_experts_per_tok=2, **SIZES)
    return hf.AutoModelForCausalLM.from_config(config, experts_implementation=spelling).eval()


def deepseek() -> nn.Module:
    config = hf.DeepseekV3Config(
        moe_intermediate_size=8, n_routed_experts=12, num_experts_per_tok=2, n_group=3, topk_group=2,
        first_k_dense_replace=0, q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
        v_head_dim=4, **SIZES,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config, experts_implementation="batched_mm").eval()


def without_mixtral(gate: Any, lost: Tensor) -> Callable[[Tensor], Any]:
    def forward(x: Tensor) -> Any:
        logits = F.linear(x.reshape(-1, x.shape[-1]), gate.weight).masked_fill(lost, -torch.inf)
        values, experts = logits.float().softmax(-1).masked_fill(lost, -torch.inf).topk(2, -1)
        return logits, (values / values.sum(-1, keepdim=True)).to(x.dtype), experts

    return forward


def without_deepseek(gate: Any, lost: Tensor) -> Callable[[Tensor], Any]:
    def forward(x: Tensor) -> Any:
        rows = x.reshape(-1, x.shape[-1]).float()
        logits = F.linear(rows, gate.weight.float()).masked_fill(lost, -torch.inf)
        scores = logits.sigmoid()
        choice = (scores + gate.e_score_correction_bias).masked_fill(lost, -torch.inf)
        best = choice.view(-1, 3, 4).topk(2, -1)[0].sum(-1).topk(2, -1)[1]
        admitted = F.one_hot(best, 3).sum(1).bool().repeat_interleave(4, -1)
        experts = choice.masked_fill(~admitted, -torch.inf).topk(2, -1)[1]
        values = scores.gather(1, experts)
        return logits, 2.5 * values / (values.sum(-1, keepdim=True) + 1e-20), experts

    return forward


CASES = {"mixtral": (mixtral, without_mixtral), "deepseek": (deepseek, without_deepseek)}


def masked(dense: nn.Module, model: CompiledModel, rule: Callable[[Any, Tensor], Any]) -> nn.Module:
    """The dense model with masked parameters, and routers that never choose what is gone."""
    twin: Any = copy.deepcopy(dense)
    small = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(widen(small[name].detach(), name, tuple(p.shape), model.removal))
    for name, module in twin.named_modules():
        if name.endswith("mlp.gate"):
            module.forward = rule(module, ~model.kept_mask(f"{name}.weight").any(1))
    result: nn.Module = twin
    return result


@pytest.mark.parametrize("case", CASES)
def test_experts_of_transformers(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, rule = CASES[case]
    dense = build().double()
    if case == "deepseek":
        gate: Any = SimpleNamespace(**dict(dense.named_buffers()))
        getattr(gate, "model.layers.0.mlp.gate.e_score_correction_bias").copy_(torch.linspace(0, 1, 12))
    model = ecospa_fx.compile(copy.deepcopy(dense), kwargs={"input_ids": TOKENS})
    optimizer = torch.optim.AdamW(model.parameters())
    for seed in (1, 2):
        model(input_ids=TOKENS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.apply(random_removal(model, 0.5, seed, kinds=KINDS), optimizer)
        assert model.verify().within(1e-6)  # routers compute in single precision
        reference = masked(dense, model, rule)
        expected = reference(input_ids=TOKENS).logits
        found = model(input_ids=TOKENS).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        expected.square().mean().backward()
        found.square().mean().backward()
        for name, p in model.named_parameters():
            wanted = dict(reference.named_parameters())[name].grad * model.kept_mask(name)
            got = widen(p.grad, name, tuple(wanted.shape), model.removal)  # type: ignore[arg-type]
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
        optimizer.zero_grad()
    assert model.get_parameter("model.layers.0.mlp.gate.weight").shape[0] < 12 - 6 * (case == "mixtral")
    model.save(tmp_path)
    again = ecospa_fx.load(tmp_path, build().double())
    torch.testing.assert_close(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


@pytest.mark.parametrize("spelling", ["batched_mm", "grouped_mm"])
def test_generation_without_some_experts(spelling: str) -> None:
    torch.manual_seed(0)
    dense = mixtral(spelling)
    model = ecospa_fx.compile(copy.deepcopy(dense), kwargs={"input_ids": TOKENS})
    model.apply(random_removal(model, 0.5, 3, kinds=KINDS))
    reference: Any = masked(dense, model, without_mixtral)
    assert model.get_parameter("model.layers.0.mlp.gate.weight").shape[0] < 6
    found = model.generate(TOKENS, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, reference.generate(TOKENS, max_new_tokens=6, do_sample=False))
