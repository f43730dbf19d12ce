"""The compiled model: the original's parameters, names and outputs, before and after it becomes smaller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

import ecospa_fx
from ecospa_fx import CompiledModel, Plan, Removal
from ecospa_fx.testing import random_removal
from tests.models.config import Config
from tests.models.masked import MaskedModel, assert_close, assert_same, loss_of
from tests.models.snapshot import identical, untouched
from tests.models.transformer import build, tokens

C = Config(kv_heads=2, group=2, rope="half", activation="swiglu", bias=True)
X = torch.randn(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """A feed-forward block with a buffer and a mask that need not be given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 34), nn.Linear(34, 10)
        self.register_buffer("scale", torch.ones(10))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> dict[str, Tensor]:
        y = self.down(torch.relu(self.up(x))) * self.scale
        y = y if mask is None else y * mask
        return {"y": y + y if twice else y}


def block() -> CompiledModel:
    return ecospa_fx.compile(Block().double(), args=(X,))


def backward(compiled: CompiledModel, x: Tensor = X) -> None:
    compiled(x)["y"].square().sum().backward()


def ones(compiled: CompiledModel) -> dict[str, Tensor]:
    return {n: torch.ones_like(p) for n, p in compiled.named_parameters()}


def test_parameters_keep_names_and_identity() -> None:
    compiled = block()
    model = compiled.source
    before = dict(compiled.named_parameters())
    optimizer, held = AdamW(model.parameters(), 0.1), list(model.parameters())
    assert list(compiled.state_dict()) == list(model.state_dict())
    backward(compiled)
    compiled.sparsify(ratio=0.5, optimizer=optimizer)
    assert (
        list(before)
        == [n for n, _ in compiled.named_parameters()]
        == [n for n, _ in Block().named_parameters()]
    )
    assert all(p is before[n] for n, p in compiled.named_parameters())
    assert all(p is h for p, h in zip(model.parameters(), held, strict=True))
    assert all(p is h for p, h in zip(optimizer.param_groups[0]["params"], held, strict=True))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in held)
    assert model.up.weight.shape == (17, 10)


def test_hooks_stay() -> None:
    compiled = block()
    seen: list[tuple[str, torch.Size]] = []
    p = compiled.get_parameter("up.weight")
    p.register_hook(lambda g: seen.append(("hook", g.shape)))
    p.register_post_accumulate_grad_hook(lambda q: seen.append(("after", q.grad.shape)))
    compiled.sparsify(ones(compiled), ratio=0.5)
    backward(compiled)
    assert seen == [("hook", p.shape), ("after", p.shape)]
    assert p.shape == (17, 10)


def test_a_moving_average_that_holds_the_parameters_goes_on() -> None:
    compiled = block()
    pairs = [(p, nn.Parameter(p.detach().clone())) for p in compiled.parameters()]
    compiled.sparsify(ones(compiled), ratio=0.5)
    shrunk = [
        n
        for (n, p), (held, old) in zip(compiled.named_parameters(), pairs, strict=True)
        if p.shape != old.shape
    ]
    assert shrunk == ["up.weight", "up.bias", "down.weight"]
    assert all(p is held for p, (held, _) in zip(compiled.parameters(), pairs, strict=True))


def test_a_live_graph_survives_the_cut() -> None:
    model = build(C)
    masked, compiled = MaskedModel(model), ecospa_fx.compile(model, args=tokens(C))
    loss, dense = loss_of(compiled(*tokens(C))), loss_of(masked(*tokens(C)))
    compiled.apply(random_removal(compiled, 0.5))
    masked.follow(compiled)
    loss.backward()
    dense.backward()
    used = {n: p.grad for n, p in masked.parameters.items() if p.grad is not None}
    small = dict(model.named_parameters())
    assert used.keys() == {n for n, p in small.items() if p.grad is not None}
    for name, expected in masked.survivors(used, small).items():
        assert_close(small[name].grad, expected, 1e-9, name)


def test_rounds_equal_the_masked_model() -> None:
    model = build(C)
    masked, compiled = MaskedModel(model), ecospa_fx.compile(model, args=tokens(C))
    kept = [{n: compiled.kept_mask(n) for n in masked.parameters}]
    for _ in range(2):
        compiled.zero_grad()
        loss_of(compiled(*tokens(C))).backward()
        compiled.sparsify(ratio=0.3)
        kept.append({n: compiled.kept_mask(n) for n in masked.parameters})
        assert_same(compiled, masked, lambda m: m(*tokens(C, 3, 11)))
    for name, p in model.named_parameters():
        sizes = [int(k[name].sum()) for k in kept]
        assert kept[0][name].all()
        assert not (kept[2][name] & ~kept[1][name]).any()
        assert sizes[2] == p.numel()
    assert (
        int(kept[1]["decoder.0.parts.1.up.weight"].sum())
        < masked.parameters["decoder.0.parts.1.up.weight"].numel()
    )


def test_a_mask_of_no_parameter() -> None:
    with pytest.raises(KeyError, match=r"'up\.scale' is not a parameter"):
        block().kept_mask("up.scale")


def test_couplings_and_reasons() -> None:
    compiled = ecospa_fx.compile(build(C), args=tokens(C))
    graph = compiled.couplings
    assert [(c.kind, c.num_units) for c in graph] == [
        ("residual", 14), ("qk", 3), ("qk", 3), ("vo", 6), ("vo", 6), ("ffn", 11),
    ]  # fmt: skip
    frozen = {(f.parameter, f.axis): f.reason for f in graph.frozen}
    assert frozen["head.weight", 0].text == "the model returns this axis"
    looked_up = frozen["embed.weight", 0]
    assert "looked up by number" in looked_up.text
    assert looked_up.op == "aten.embedding.default"
    assert "transformer.py:" in looked_up.source
    assert "= self.embedded(tokens)" in looked_up.source
    text = compiled.explain("decoder.0.parts.0.k.weight").splitlines()
    assert text[0] == "decoder.0.parts.0.k.weight [12, 14]"
    assert "  axis 0 (out): 3 units of decoder.0.parts.0.qk[1]" in text
    with pytest.raises(KeyError, match="not a parameter"):
        compiled.explain("decoder.9")


def test_verify_sees_a_wrong_model() -> None:
    compiled = block()
    compiled.sparsify(ones(compiled), ratio=0.4)
    compiled.verify(X)  # captures the evaluation mode
    compiled.train()
    with untouched(compiled):
        found = compiled.verify(X)
    assert found.within(1e-9)
    assert compiled.training
    assert compiled.verify().within(1e-9)
    wrong = {
        **compiled.removal.removed,
        "down.weight": {1: np.arange(len(compiled.removal.removed["up.bias"][0]))},
    }
    compiled.removal = Removal(compiled.removal.shapes, wrong)
    assert not compiled.verify(X).within(1e-2)


def test_a_copy_is_independent() -> None:
    compiled = block()
    compiled.sparsify(ones(compiled), ratio=0.3)
    twin = copy.deepcopy(compiled)
    assert torch.equal(twin(X)["y"], compiled(X)["y"])
    with untouched(compiled):
        twin.sparsify(ones(twin), ratio=0.3)
        SGD(twin.parameters(), 0.1).step()
        assert twin.verify(X).within(1e-9)
    with untouched(twin):
        compiled.sparsify(ones(compiled), ratio=0.6)
    assert sum(p.numel() for p in compiled.parameters()) < sum(p.numel() for p in twin.parameters())


def test_a_plan_as_text_applied_to_a_copy_equals_sparsify() -> None:
    compiled = ecospa_fx.compile(build(C), args=tokens(C))
    other = copy.deepcopy(compiled)
    gradients = {n: torch.randn_like(p) for n, p in compiled.named_parameters()}
    with untouched(other):
        plan = other.plan(gradients, ratio=0.4)
    other.apply(Plan.from_json(plan.to_json()))
    report = compiled.sparsify(gradients, ratio=0.4)
    assert identical(dict(compiled.named_parameters()), dict(other.named_parameters()))
    assert report.params_after == plan.params_after == sum(p.numel() for p in other.parameters())
    assert identical(compiled(*tokens(C)), other(*tokens(C)))


CALLS: dict[str, Callable[[Any], Any]] = {
    "as captured": lambda m: m(X),
    "by keyword": lambda m: m(x=X),
    "with a mask": lambda m: m(X, torch.arange(10.0).double()),
    "with a mask of another rank": lambda m: m(X, mask=torch.ones(5, 10).double()),
    "with a flag": lambda m: m(X, twice=True),
    "of another rank": lambda m: m(X.view(1, 5, 10)),
    "one row": lambda m: m(X[:1]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_new_kinds_of_calls_after_the_cut(call: Callable[[Any], Any]) -> None:
    compiled = block()
    masked = MaskedModel(compiled.source)
    compiled.sparsify(ones(compiled), ratio=0.5)
    assert_same(compiled, masked, lambda m: call(m)["y"])


def test_output_types_stay() -> None:
    config = LlamaConfig(
        hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31,
    )  # fmt: skip
    model = LlamaModel(config).double().eval()
    masked, compiled = MaskedModel(model), ecospa_fx.compile(model)
    compiled.sparsify(ones(compiled), ratio=0.4)  # captured from dummy_inputs
    ids, mask = torch.randint(0, 31, (2, 9)), (torch.arange(9) < 6).expand(2, 9).long()
    found = compiled(ids, attention_mask=mask, output_hidden_states=True)
    assert type(found) is BaseModelOutputWithPast
    assert len(found.hidden_states) == 2
    assert found.past_key_values is not None
    assert_same(compiled, masked, lambda m: m(ids, attention_mask=mask, output_hidden_states=True))


def test_buffers_and_dtypes_follow() -> None:
    compiled = block()
    compiled.sparsify(ones(compiled), ratio=0.5)
    compiled.to(torch.float32)
    assert compiled(X.float())["y"].dtype is torch.float32
    compiled.get_buffer("scale").zero_()
    assert not compiled(X.float())["y"].any()
