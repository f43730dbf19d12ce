"""Collectors: what transformers leaves on a model that was asked for its hidden states."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch._dynamo.testing import CompileCounter

import ecospa_fx
from ecospa_fx.collectors import forget_collectors

TOKENS = torch.arange(8).view(2, 4)


def model() -> Any:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2
    )
    return hf.LlamaForCausalLM(config).eval()


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_hooks_of_a_user_stay() -> None:
    made = model()
    made.model.layers[0].register_forward_hook(lambda *_: None)
    made(TOKENS, output_hidden_states=True)
    assert hooks(made) > 1
    forget_collectors(made)
    assert hooks(made) == 1
    assert len(made(TOKENS, output_hidden_states=True).hidden_states) == 3


def test_torch_compile_after_hidden_states() -> None:
    made = model()
    made(TOKENS, output_hidden_states=True)
    compiled = ecospa_fx.compile(made)
    assert len(compiled(TOKENS, use_cache=False, output_hidden_states=True).hidden_states) == 3
    assert hooks(made) == 0
    expected = compiled(TOKENS, use_cache=False).logits
    counter = CompileCounter()
    found = torch.compile(compiled, backend=counter, fullgraph=True)(TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1
