"""Adapters: they shrink with the weights that they adapt, train, merge and can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx
from ecospa_fx import CompiledModel, RewriteError, SparsitySchedule
from tests.models.snapshot import untouched

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for it

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = ("qk", "vo", "ffn")
IDS = torch.arange(18).reshape(2, 9) % 40


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def adapted(spread: float = 0.3, **config: Any) -> CompiledModel:
    """A model with adapters that have moved by ``spread``."""
    config = {"r": 3, "target_modules": ALL, "lora_dropout": 0.0, **config}
    model = peft.get_peft_model(llama(), peft.LoraConfig(**config)).double()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(0, spread) if spread else param.zero_()
    return ecospa_fx.compile(model, kwargs={"input_ids": IDS, "labels": IDS})


def backward(model: CompiledModel) -> float:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item()


def shapes(model: CompiledModel, part: str) -> list[tuple[int, ...]]:
    """Of a weight and of both factors of its adapter."""
    names = [n for n, _ in model.named_parameters() if f".{part}." in n and n.endswith("weight")]
    return [tuple(model.get_parameter(n).shape) for n in sorted(names)]


@pytest.mark.parametrize("config", [{}, {"bias": "lora_only"}, {"use_rslora": True}], ids=str)
def test_adapters_shrink_with_their_weights(config: dict[str, Any]) -> None:
    model = adapted(**config)
    backward(model)
    report = model.sparsify(ratio=0.4, kinds=KINDS)
    assert report.params_after < report.params_before
    for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        base, a, b = shapes(model, part)
        assert (base[0], a, b[1]) == (b[0], (3, 16), 3)
    for part in ("o_proj", "down_proj"):
        base, a, b = shapes(model, part)
        assert (base[1], a[0], b) == (a[1], 3, (16, 3))
    assert model.verify().within(1e-9)


def test_frozen_weights_stay_frozen_and_training_goes_on() -> None:
    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=1e-2)
    schedule = SparsitySchedule(model, optimizer, target_ratio={"ffn": 0.5, "qk": 0.25}, every=2, end=6)
    losses = []
    for _ in range(30):
        losses.append(backward(model))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert schedule.done
    assert losses[-1] < losses[6]
    assert [p for p in model.parameters() if p.requires_grad] == trained
    assert all(v.shape in (p.shape, ()) for p in trained for v in optimizer.state[p].values())
    assert model.verify().within(1e-9)


@pytest.mark.parametrize("score", ["fisher", "taylor", "l1_product", "magnitude"])
def test_fresh_adapters_can_be_scored(score: str) -> None:
    """The one factor of a fresh adapter is zero, so every gradient score is: magnitude ranks the units."""
    model = adapted(spread=0.0)
    backward(model)
    plan = model.plan(ratio=0.3, score=score, kinds=KINDS)
    if score in ("fisher", "taylor", "magnitude"):
        assert (
            plan.removal.to_dict() == model.plan(ratio=0.3, score="magnitude", kinds=KINDS).removal.to_dict()
        )


def test_couples_without_any_gradient_go_last() -> None:
    model = adapted(target_modules=["q_proj", "v_proj"])
    backward(model)
    plan = model.plan(ratio=0.05, kinds=KINDS)
    assert {loss.kind for loss in plan.losses if loss.lost} <= {"qk", "vo"}
    everything = model.plan(ratio=0.8, kinds=KINDS)
    strength = sum(
        model.get_parameter(f"base_model.model.model.layers.0.mlp.{n}.weight").square().sum(d)
        for n, d in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0))
    )
    gone = everything.removal.removed["base_model.model.model.layers.0.mlp.up_proj.weight"][0]
    assert set(gone.tolist()) == set(strength.argsort()[: len(gone)].tolist())


def test_a_model_frozen_throughout_needs_another_score() -> None:
    model = adapted()
    model.requires_grad_(False)
    with untouched(model):
        plan = model.plan(ratio=0.3, score="magnitude", allocation="uniform")
    assert plan.params_after < plan.params_before


def test_gradients_of_frozen_weights_may_be_passed() -> None:
    model = adapted()
    model.requires_grad_(True)
    backward(model)
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for name, param in model.named_parameters():
        param.requires_grad_("lora" in name)
    alone = model.plan(ratio=0.3, kinds=KINDS)
    both = model.plan(gradients, ratio=0.3, kinds=KINDS)
    assert alone.params_after == pytest.approx(both.params_after, abs=200)
    model.apply(both)
    assert model.verify().within(1e-9)


@pytest.mark.parametrize("kinds", [KINDS, (*KINDS, "lowrank")], ids=str)
def test_merging_changes_nothing_but_the_adapters(kinds: tuple[str, ...]) -> None:
    model = adapted()
    backward(model)
    model.sparsify(ratio=0.4, kinds=kinds)
    with untouched(model):
        merged = ecospa_fx.merge_adapters(model)
    assert type(merged.source) is LlamaForCausalLM
    assert not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert merged.get_parameter("model.layers.0.mlp.up_proj.weight").shape == shapes(model, "up_proj")[0]
    expected, got = (m(input_ids=IDS, labels=IDS) for m in (model, merged))
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-12)
    assert merged.verify().within(1e-9)
    merged.requires_grad_(True)
    backward(merged)
    merged.sparsify(ratio=0.1)
    assert merged.verify().within(1e-9)


def test_saving_with_and_without_adapters(tmp_path: Path) -> None:
    model = adapted()
    backward(model)
    model.sparsify(ratio=0.4, kinds=KINDS)
    expected = model(input_ids=IDS).logits
    model.save(tmp_path / "adapted")
    fresh = peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=ALL)).double()
    torch.testing.assert_close(
        ecospa_fx.load(tmp_path / "adapted", fresh).eval()(input_ids=IDS).logits, expected
    )
    ecospa_fx.merge_adapters(model).save(tmp_path / "merged")
    plain = ecospa_fx.load(tmp_path / "merged", llama())
    torch.testing.assert_close(plain(input_ids=IDS).logits, expected)


def test_a_model_without_adapters_cannot_be_merged() -> None:
    model = ecospa_fx.compile(llama(), kwargs={"input_ids": IDS})
    with pytest.raises(RewriteError, match="LlamaForCausalLM has no merge_and_unload"):
        ecospa_fx.merge_adapters(model)
