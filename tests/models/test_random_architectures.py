"""Properties that hold for every architecture, whatever is removed."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.census import dead_components
from ecospa_fx.testing import random_removal
from tests.models.config import Config, configs, covering
from tests.models.masked import MaskedModel, assert_close, assert_same, loss_of
from tests.models.transformer import build, tokens

FEW = max(1, settings().max_examples // 20)
ROTARY = Config(kv_heads=2, group=2, rope="half", activation="swiglu", qk_norm="head", bias=True)
FUSED = Config(kv_heads=3, projection="conv1d", norm="layer", attention="sdpa", position="learned", tied=True)


def compiled_of(model: nn.Module, c: Config) -> CompiledModel:
    return ecospa_fx.compile(model, args=tokens(c))


def remove(compiled: CompiledModel, seed: int, optimizer: Optimizer | None = None) -> None:
    compiled.apply(random_removal(compiled, 0.4, seed), optimizer)


def check_everything(c: Config) -> None:
    """Every couple is there, and two rounds of removal equal masking, at sizes that were not captured."""
    model = build(c)
    masked, compiled = MaskedModel(model), compiled_of(model, c)
    found = Counter(dict.fromkeys(c.units(), 0))
    for couple in compiled.couplings:
        found[couple.kind] += couple.num_units
    assert {kind: found[kind] for kind in c.units()} == dict(c.units())
    assert not compiled.analysis.unknown
    for number in range(3):
        if number:
            remove(compiled, number)
        assert_same(compiled, masked, lambda m: m(*tokens(c, 5, 11, seed=1)))


@pytest.mark.parametrize("c", covering(), ids=str)
def test_every_choice_is_coupled_and_removal_equals_masking(c: Config) -> None:
    check_everything(c)


@settings(max_examples=FEW)
@given(configs())
def test_removal_equals_masking(c: Config) -> None:
    check_everything(c)


STREAMS = [
    Config(),
    Config(norm="layer", place="post", position="learned", tied=True),
    Config(norm="rms_by_hand", place="sandwich", projection="fused", rope="half", cross=True),
    Config(norm="rms", parallel=True, projection="einsum", activation="swiglu", lora=2),
]


@pytest.mark.parametrize("c", STREAMS, ids=str)
def test_the_residual_stream_can_shrink_too(c: Config) -> None:
    model = build(c)
    masked, compiled = MaskedModel(model), compiled_of(model, c)
    units = sum(x.num_units for x in compiled.couplings if x.kind == "residual")
    assert units == c.width
    for seed in range(2):
        compiled.apply(random_removal(compiled, 0.3, seed, kinds=("residual", "ffn")))
        assert_same(compiled, masked, lambda m: m(*tokens(c, 5, 11, seed=1)))
    assert compiled.get_parameter("norm.weight").shape[0] < c.width


RAGGED = [
    Config(),
    Config(kv_heads=2, group=2, rope="half", qk_norm="head", repeat="enable_gqa", attention="sdpa"),
    Config(projection="stacked", position="alibi", sinks=True, bias=True),
    Config(kv_heads=3, group=2, projection="fused", rope="interleaved", qk_norm="flat", repeat="grouped"),
    Config(projection="per_head", rope="partial", gate=True, norm="layer", lora=0),
]


@pytest.mark.parametrize("c", RAGGED, ids=str)
def test_heads_may_keep_different_counts(c: Config) -> None:
    model = build(c)
    masked, compiled = MaskedModel(model), compiled_of(model, c)
    for seed in range(3):
        compiled.apply(random_removal(compiled, 0.3, seed, ragged=True))
        assert_same(compiled, masked, lambda m: m(*tokens(c, 5, 11, seed=1)))
    graph = compiled.couplings
    alive = (graph.segment_of >= 0) & ~dead_components(graph, compiled.removal)
    counts = np.bincount(graph.segment_of[alive])
    assert any(len(set(counts[graph.bundle_of == b])) > 1 for b in set(graph.bundle_of))


@settings(max_examples=FEW)
@given(configs())
def test_removing_zero_pairs_changes_nothing(c: Config) -> None:
    c = dataclasses.replace(c, layers=1, shared=False)
    model = build(c)
    compiled = compiled_of(model, c)
    removal = random_removal(compiled, 0.5, 3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(removal.mask(name, tuple(p.shape)))
        before = model(*tokens(c, 3, 9))
    compiled.apply(removal)
    assert sum(p.numel() for p in compiled.parameters()) < sum(p.numel() for p in build(c).parameters())
    with torch.no_grad():
        assert_close(compiled(*tokens(c, 3, 9)), before, 1e-9, "outputs")


@pytest.mark.parametrize("c", [ROTARY, FUSED], ids=str)
def test_permuting_the_units_of_a_group_changes_nothing(c: Config) -> None:
    """Units of one segment are interchangeable, except pairs of a rotary embedding."""
    model = build(c)
    graph = compiled_of(model, c).couplings
    before = model(*tokens(c))
    kinds = [k for k in ("vo", "ffn", "qk") if not (k == "qk" and c.rope != "none")]
    move = np.arange(len(graph.couple_of))
    for segment in range(len(graph.bundle_of)):
        units = np.flatnonzero(graph.segment_of == segment)
        if graph.couples[graph.couple_of[units[0]]].kind in kinds:
            move[units] = np.roll(units, 1)
    assert (move != np.arange(len(move))).any()
    with torch.no_grad():
        for axis in graph.axes:
            have, want = axis.components, move[axis.components]
            source = np.empty(len(have), np.int64)
            source[np.argsort(want, kind="stable")] = np.argsort(have, kind="stable")
            p = model.get_parameter(axis.parameter)
            p.copy_(p.index_select(axis.axis, torch.from_numpy(source)))
        assert_close(model(*tokens(c)), before, 1e-9, "outputs")


OPTIMIZERS = {
    "adamw": lambda p: AdamW(
        p, lr=1e-2, weight_decay=0.1, eps=1e-5
    ),  # a key's bias has no gradient but noise
    "amsgrad": lambda p: AdamW(p, lr=1e-2, amsgrad=True, eps=1e-5),
    "momentum": lambda p: SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: RMSprop(p, lr=1e-3, momentum=0.5, centered=True, eps=1e-5),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("c", [ROTARY, FUSED], ids=str)
def test_steps_after_a_removal_equal_masked_steps(c: Config, make: object) -> None:
    model = build(c)
    masked, compiled = MaskedModel(model), compiled_of(model, c)
    optimizer, other = make(compiled.parameters()), make(masked.parameters.values())  # type: ignore[operator]
    for step in range(9):
        if step in (3, 6):
            remove(compiled, step, optimizer)
            masked.follow(compiled)
        for net, opt in ((compiled, optimizer), (masked, other)):
            opt.zero_grad()
            loss_of(net(*tokens(c, 3, 7, seed=step))).backward()
            opt.step()
    small: dict[str, Tensor] = dict(compiled.named_parameters())
    expected = masked.survivors(masked.parameters, small)
    for name, p in small.items():
        assert_close(p, expected[name], 1e-9, name)
