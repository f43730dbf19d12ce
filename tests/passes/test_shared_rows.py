"""Heads on any axis of the weights choose dims of their own; what is left equals the masked model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.passes.analyse import analyse
from ecospa_fx.testing import random_removal
from tests.models.layouts import DIM, Groups, Heads, Layout
from tests.models.masked import MaskedModel, assert_close, assert_same, loss_of
from tests.models.tiny import Function, program

FEW = max(1, settings().max_examples // 20)
CHOOSE = {
    "dhk-hkd": Layout(),
    "dhk-dhk": Layout(outer="dhk"),
    "hdk-hdk": Layout("hdk", "hdk"),
    "hkd-dhk": Layout("hkd", "dhk"),
    "interleave": Layout(group=2),
    "expand": Layout(group=2, repeat="expand", bias=False),
    "linear": Layout(way="linear"),
    "linear, groups": Layout(way="linear", group=3),
    "tensordot": Layout(way="tensordot", heads=3),
    "matmul": Layout(way="matmul"),
    "group axis": Layout(group=3, repeat="axis"),
}
TOKENS = torch.arange(10).view(2, 5) % 11


def build(layout: Layout, seed: int = 0) -> nn.Module:
    return (Groups if layout.repeat == "axis" else Heads)(layout, seed)


def compiled(model: nn.Module) -> CompiledModel:
    return ecospa_fx.compile(model, args=(TOKENS,))


def units(model: CompiledModel, kind: str) -> list[int]:
    return [c.num_units for c in model.couplings if c.kind == kind and c.num_units == DIM]


def check(layout: Layout) -> CompiledModel:
    """Two rounds equal masking, and steps between them equal masked steps."""
    model = build(layout)
    masked, small = MaskedModel(model), compiled(model)
    optimizer = torch.optim.AdamW(small.parameters(), eps=1e-5)
    other = torch.optim.AdamW(masked.parameters.values(), eps=1e-5)
    for number in range(2):
        for net, opt in ((small, optimizer), (masked, other)):
            opt.zero_grad()
            loss_of(net(TOKENS)).backward()
            opt.step()
        small.apply(random_removal(small, 0.4, number), optimizer)
        assert_same(small, masked, lambda m: m(TOKENS.T))
    left = dict(small.named_parameters())
    for name, kept in masked.survivors(masked.parameters, left).items():
        assert_close(left[name], kept, 1e-9, name)
    return small


@pytest.mark.parametrize("layout", CHOOSE.values(), ids=CHOOSE)
def test_each_head_loses_dims_of_its_own(layout: Layout) -> None:
    small = check(layout)
    assert units(small, "qk") == units(small, "vo") == [DIM] * layout.heads
    mask = small.kept_mask("k").movedim(layout.inner.index("h"), 0).flatten(1)
    assert (mask != mask[:1]).any()


LAYOUTS = st.builds(
    Layout,
    inner=st.sampled_from(["".join(p) for p in itertools.permutations("dhk")]),
    outer=st.sampled_from(["".join(p) for p in itertools.permutations("dhk")]),
    way=st.sampled_from(["einsum", "linear", "tensordot", "matmul"]),
    heads=st.sampled_from([2, 1, 3]),
    group=st.sampled_from([1, 2]),
    repeat=st.sampled_from(["interleave", "expand"]),
    bias=st.booleans(),
)


@settings(max_examples=FEW)
@given(LAYOUTS)
def test_every_layout_equals_the_masked_model(layout: Layout) -> None:
    check(layout)


def test_the_order_of_axes_changes_nothing() -> None:
    """The same weights in another layout lose the same units."""
    one, two = Heads(Layout("hdk", "hkd")), Heads(Layout("dhk", "dhk"))
    with torch.no_grad():
        state = dict(one.state_dict())
        for name in "qkv":
            state[name] = state[name].transpose(0, 1)
        two.load_state_dict(state | {"o": state["o"].permute(2, 0, 1)})
    found = []
    for model in (one, two):
        small = compiled(model)
        loss_of(small(TOKENS)).backward()
        small.sparsify(ratio=0.4)
        found.append(small)
    assert found[0].kept_mask("q").equal(found[1].kept_mask("q").transpose(0, 1))
    assert found[0].kept_mask("o").equal(found[1].kept_mask("o").permute(1, 2, 0))
    assert_close(found[0](TOKENS), found[1](TOKENS), 1e-9, "outputs")


def test_calls_of_another_kind_follow() -> None:
    model = Heads(Layout())
    masked, small = MaskedModel(model), compiled(model)
    small.apply(random_removal(small, 0.4, 1))
    mask = torch.randn(5, 5, dtype=torch.float64)
    assert_same(small, masked, lambda m: m(TOKENS, mask))


def test_heads_that_differ_in_importance_stay_a_box() -> None:
    small = compiled(Heads(Layout(heads=3)))
    loss_of(small(TOKENS)).backward()
    small.sparsify(ratio=0.4, heads="ragged")
    assert small.verify().within(1e-9)
    assert (small.kept_mask("q").any(0).sum(1) == small.get_parameter("q").shape[2]).all()


def test_whole_heads_go() -> None:
    small = compiled(Heads(Layout(heads=4)))
    loss_of(small(TOKENS)).backward()
    small.sparsify(ratio=0.5, remove_heads=True)
    assert small.verify().within(1e-9)
    assert small.get_parameter("q").shape[1] == small.get_parameter("o").shape[0] < 4


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adafactor])
def test_saved_and_loaded_training_goes_on(make: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    small = compiled(Heads(Layout(group=2)))
    optimizer = make(small.parameters())
    for seed in (1, 2):
        loss_of(small(TOKENS)).backward()
        optimizer.step()
        small.apply(random_removal(small, 0.3, seed), optimizer)
    small.save(tmp_path)
    loaded = ecospa_fx.load(tmp_path, Heads(Layout(group=2), seed=3))
    assert loaded.removal.to_dict() == small.removal.to_dict()
    assert torch.equal(loaded(TOKENS), small(TOKENS))
    assert np.array_equal(loaded.kept_mask("q"), small.kept_mask("q"))


def flat(m: object, x: Tensor) -> Tensor:
    q, k = (torch.einsum("btd,dhk->bhtk", x, w) for w in (m.q, m.k))
    return ((q @ k.mT).softmax(-1) @ k).transpose(1, 2).flatten(2) @ m.o


def one_key(m: object, x: Tensor) -> Tensor:
    q = torch.einsum("btd,dhk->bhtk", x, m.q)
    return torch.einsum("bhtk,hkd->btd", (q @ (x @ m.j).mT[:, None]).softmax(-1) @ (x @ m.j)[:, None], m.p)


def two_convolutions(m: object, x: Tensor) -> Tensor:
    return F.conv1d(F.conv1d(x.mT, m.w).relu(), m.z).mT


SHAPES = {
    "q": (6, 3, 4),
    "k": (6, 3, 4),
    "o": (12, 6),
    "j": (6, 4),
    "p": (3, 4, 6),
    "w": (9, 6, 2),
    "z": (6, 9, 2),
}
CASES = {
    "heads that are flattened": (flat, {"q": (1, 2), "k": (1, 2)}),
    "one key for all heads": (one_key, {}),
    "convolutions": (two_convolutions, {}),
}


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_stacks(function: Function, expected: dict[str, tuple[int, int]]) -> None:
    assert analyse(program(function, **SHAPES))[1].stacked == expected
