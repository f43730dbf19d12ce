"""Ways: in which order captures are tried, and which sizes example inputs are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import LlamaConfig, LlamaModel

from ecospa_fx.errors import BackwardError, CaptureError
from ecospa_fx.passes.ways import Way, reads_values, unlike_sizes, values_followed, ways

MODEL = nn.Linear(5, 3)  # takes the first primes
IDS = torch.arange(2 * 12).view(2, 12)

SIZES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]] | None]] = {
    "a float": ({"x": torch.ones(4, 6)}, {"x": (7, 6)}),
    "tokens": ({"ids": IDS}, {"ids": (7, 11)}),
    "tokens and a mask": ({"ids": IDS, "mask": torch.ones(2, 12).long()}, {"ids": (7, 11), "mask": (7, 11)}),
    "embeddings of the tokens": ({"ids": IDS, "e": torch.ones(2, 12, 5)}, {"ids": (7, 11), "e": (7, 11, 5)}),
    "short tokens": ({"ids": IDS[:, :2]}, {"ids": (7, 2)}),
    "a number beside": ({"x": torch.ones(4, 6), "scale": torch.ones(()), "n": 3}, {"x": (7, 6), "scale": ()}),
    "inside a list": ({"xs": [torch.ones(4, 6), torch.ones(4, 9)]}, {"xs": (7, 6)}),
    "batches that differ": ({"x": torch.ones(4, 6), "y": torch.ones(5, 6)}, None),
    "no tensors": ({"n": 3}, None),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "shapes"), SIZES.values(), ids=SIZES)
def test_unlike_sizes(inputs: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None) -> None:
    found = unlike_sizes(MODEL, inputs)
    if shapes is None:
        assert found is None
        return
    assert found is not None
    assert found.keys() == inputs.keys()
    for name, shape in shapes.items():
        tensor = found[name][0] if isinstance(found[name], list) else found[name]
        assert tuple(tensor.shape) == shape


def test_values_are_those_of_the_example() -> None:
    found = unlike_sizes(MODEL, {"ids": IDS})
    assert found is not None
    assert torch.equal(found["ids"][:2], IDS[:, :11])
    assert torch.equal(found["ids"][2], IDS[0, :11])
    assert IDS.shape == (2, 12)


def test_the_most_general_way_comes_first() -> None:
    grid, ids = torch.ones(1, 3, dtype=torch.long), torch.ones(1, 90, dtype=torch.long)
    tried = list(ways(MODEL, {"x": torch.ones(1, 6), "grid": grid, "ids": ids}))
    cost = [(w.strict, bool(w.fixed), not w.dynamic) for w in tried]
    assert cost[0] == (False, False, False)
    assert [c[0] for c in cost] == sorted(c[0] for c in cost)
    flexible = [w.dynamic for w in tried if not w.strict and not w.followed]
    assert flexible == sorted(flexible, reverse=True)
    assert [sorted(w.fixed) for w in tried if w.fixed] == [["grid"], ["grid"], ["grid", "ids"]]
    assert tried[0].inputs is not tried[-1].inputs


@pytest.mark.parametrize(
    ("message", "reads"),
    [("data-dependent expression u0", True), ("call to .item() found", True), ("shapes do not match", False)],
)
def test_only_what_fixes_values_helps_against_values(message: str, reads: bool) -> None:
    failure = RuntimeError(message)
    assert reads_values(failure) is reads
    assert Way({}).idle(failure) is reads
    assert Way({}, fixed=frozenset({"grid"})).idle(failure) is not reads
    assert not Way({}).idle(None)


@pytest.mark.parametrize("failure", [None, RuntimeError("shapes"), CaptureError("differs"), BackwardError()])
def test_some_ways_help_against_wrong_graphs_alone(failure: Exception | None) -> None:
    assert Way({}, whole=True).idle(failure) is not isinstance(failure, BackwardError)
    assert Way({}, patched=False).idle(failure) is isinstance(failure, RuntimeError | BackwardError)


def test_only_models_of_transformers_are_captured_without_its_patches() -> None:
    llama = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=3,
                        num_attention_heads=2)  # fmt: skip
    assert all(way.patched for way in ways(MODEL, {"x": torch.ones(4, 5)}))
    assert not all(way.patched for way in ways(LlamaModel(llama), {"input_ids": IDS}))


@pytest.mark.parametrize(
    "tensor",
    [torch.full((99,), 3.0), nn.Parameter(torch.full((99,), 3.0)), nn.Parameter(torch.ones(3).expand(9, 3))],
)
def test_what_is_followed_starts_with_the_values_of_parameters_and_inputs(tensor: torch.Tensor) -> None:
    with values_followed():
        followed = FakeTensorMode().from_tensor(tensor)
    assert torch.equal(followed.real_tensor, tensor.detach())
