"""Folds: flat inputs and outputs as ``torch.export`` has them, without its walk."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch.utils import _pytree as pytree

import ecospa_fx
from ecospa_fx.caches import plain_arguments
from ecospa_fx.folds import assembly, flat

TOKENS = torch.randint(3, 31, (2, 5), generator=torch.Generator().manual_seed(0))


def cache(layers: int = 3, filled: bool = True) -> Any:
    found = hf.DynamicCache()
    for layer in range(layers if filled else 0):
        found.update(torch.randn(2, 2, 4, 6), torch.randn(2, 2, 4, 6), layer)
    return found


def test_inputs_in_the_order_of_a_capture() -> None:
    call = {"ids": TOKENS, "past": cache(), "many": [TOKENS, {"a": 1}], "flag": True}
    plain, _ = plain_arguments(call)
    leaves, _ = flat(plain)
    walked = pytree.tree_leaves(plain)
    assert len(leaves) == len(walked) == 10
    assert all(a is b or a == b for a, b in zip(leaves, walked, strict=True))


def test_what_tells_calls_apart() -> None:
    calls: list[dict[str, Any]] = [
        {"x": TOKENS}, {"y": TOKENS}, {"x": [TOKENS]}, {"x": (TOKENS,)}, {"x": cache(2)}, {"x": cache(3)},
        {"x": cache(filled=False)}, {"x": hf.EncoderDecoderCache(cache(2), cache(2))},
    ]  # fmt: skip
    structures = [flat(plain_arguments(call)[0])[1] for call in calls]
    assert len(set(structures)) == len(calls)
    assert flat(plain_arguments({"x": cache(2)})[0])[1] == structures[4]


def test_outputs_are_those_of_the_walk() -> None:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4
    )
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config))
    with torch.no_grad():
        compiled(TOKENS, use_cache=True)
        compiled(TOKENS, use_cache=False)
    for signature in compiled.signatures:
        program = signature.program
        leaves = signature.executable(program.leaves(signature.inputs))
        found, walked = assembly(program.out_spec)(leaves), pytree.tree_unflatten(leaves, program.out_spec)
        assert type(found) is type(walked)
        assert found.keys() == walked.keys()
        assert all(a is b for a, b in zip(*map(pytree.tree_leaves, (found, walked)), strict=True))
        if "past_key_values" in found:
            assert vars(found.past_key_values.layers[1]) == vars(walked.past_key_values.layers[1])
            assert found.past_key_values is not assembly(program.out_spec)(leaves).past_key_values
