"""Kernels: a compiled model takes those that eager mode takes, and gives the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ecospa_fx
from ecospa_fx.testing import random_removal

TOKENS = torch.randint(3, 31, (2, 9), generator=torch.Generator().manual_seed(0))
ONES = torch.ones_like(TOKENS)
PADDED = (torch.arange(9) >= torch.tensor([[3], [0]])).long()
SIZES: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip


def llama(**more: Any) -> nn.Module:
    config = hf.LlamaConfig(intermediate_size=44, num_key_value_heads=2, **SIZES, **more)
    return hf.LlamaForCausalLM(config).double().eval()


def mistral() -> nn.Module:
    config = hf.MistralConfig(intermediate_size=44, num_key_value_heads=2, sliding_window=6, **SIZES)
    return hf.MistralForCausalLM(config).double().eval()


def bert() -> nn.Module:
    return hf.BertModel(hf.BertConfig(intermediate_size=44, **SIZES)).double().eval()


def dispatched(model: Any, **call: Any) -> list[tuple[str, Any]]:
    """Kernels of attention, and the shapes that they were given."""
    with torch.no_grad():
        model(**copy.deepcopy(call))
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
            model(**copy.deepcopy(call))
    names = ("_for_cpu", "_attention_math")
    return [(e.name, e.input_shapes) for e in record.events() if e.name.endswith(names)]


def cached(model: Any, tokens: Tensor = TOKENS) -> dict[str, Any]:
    with torch.no_grad():
        past = model(tokens, use_cache=True).past_key_values
    mask = torch.ones(len(tokens), tokens.shape[1] + 1, dtype=torch.long)
    return {"input_ids": tokens[:, :1], "past_key_values": past, "attention_mask": mask}


CALLS = {
    "no mask": (llama, {"input_ids": TOKENS, "use_cache": False}),
    "all ones": (llama, {"input_ids": TOKENS, "attention_mask": ONES, "use_cache": False}),
    "bidirectional": (bert, {"input_ids": TOKENS}),
    "bidirectional with ones": (bert, {"input_ids": TOKENS, "attention_mask": ONES}),
    "within the window": (mistral, {"input_ids": TOKENS[:, :5], "use_cache": False}),
}


@pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS)
def test_the_kernels_of_eager_mode(make: Any, call: dict[str, Any]) -> None:
    model = make()
    compiled = ecospa_fx.compile(model)
    found = dispatched(compiled, **call)
    assert found == dispatched(model, **call)
    assert len(found) == 2
    assert all(not shapes[5] for _, shapes in found), "a mask was given"


def test_the_kernels_of_eager_mode_with_a_cache() -> None:
    model = llama()
    compiled = ecospa_fx.compile(model)
    found = dispatched(compiled, **cached(model))
    assert found == dispatched(model, **cached(model))
    assert [shapes[1][1] for _, shapes in found] == [2, 2]  # key heads, not repeated


@pytest.mark.parametrize("make", [llama, mistral, bert])
def test_a_mask_that_hides_something_stays(make: Any) -> None:
    model = make()
    compiled = ecospa_fx.compile(model)
    for mask in (ONES, PADDED, ONES, ONES * (TOKENS > 8), ONES[:1].expand(2, -1)):
        call = {"input_ids": TOKENS, "attention_mask": mask}
        torch.testing.assert_close(compiled(**call)[0], model(**call)[0], rtol=1e-9, atol=1e-9)
    assert len(list(compiled.signatures)) == 1


@pytest.mark.parametrize("length", [3, 5, 6, 7, 9])
def test_windows_for_every_length(length: int) -> None:
    model = mistral()
    compiled = ecospa_fx.compile(model)
    x = TOKENS[:, :length]
    for call in ({}, {"attention_mask": ONES[:, :length]}):
        found, expected = (m(x, use_cache=False, **call).logits for m in (compiled, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kinds", [("vo",), ("qk",), ("qk", "vo")])
@pytest.mark.parametrize("make", [llama, bert])
def test_unequal_widths_take_fused_kernels(make: Any, kinds: tuple[str, ...]) -> None:
    compiled = ecospa_fx.compile(make())
    call = {"input_ids": TOKENS, "attention_mask": ONES}
    compiled(**call)
    compiled.apply(random_removal(compiled, 0.4, kinds=kinds))
    for mask in (ONES, PADDED):
        assert compiled.verify(input_ids=TOKENS, attention_mask=mask).within(1e-9)
        names = {name for name, _ in dispatched(compiled, input_ids=TOKENS, attention_mask=mask)}
        assert names == {"aten::_scaled_dot_product_flash_attention_for_cpu"}


def test_single_tokens_after_a_removal() -> None:
    compiled = ecospa_fx.compile(llama())
    compiled(TOKENS, use_cache=True)
    compiled.apply(random_removal(compiled, 0.4, kinds=("vo",)))
    call = cached(compiled)
    assert {shapes[1][1] for _, shapes in dispatched(compiled, **call)} == {2}
    whole = compiled(torch.cat([TOKENS, TOKENS[:, :1]], 1), use_cache=False).logits[:, -1:]
    for mask in (call["attention_mask"], None):
        found = compiled(**{**copy.deepcopy(call), "attention_mask": mask}).logits
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)


def test_values_are_not_read_while_torch_traces() -> None:
    compiled = ecospa_fx.compile(llama())
    call = {"input_ids": TOKENS, "attention_mask": ONES, "use_cache": False}
    expected = compiled(**call).logits
    fast = torch.compile(compiled, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(**call).logits, expected, rtol=1e-9, atol=1e-9)
    exported = torch.export.export(compiled, (), call).module()
    masked = {**call, "attention_mask": PADDED}
    torch.testing.assert_close(exported(**masked).logits, compiled(**masked).logits, rtol=1e-9, atol=1e-9)
