"""Capture: what a graph computes, for which sizes and modes it holds, and that the model stays as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import export
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx
from ecospa_fx.errors import CaptureError
from ecospa_fx.testing import assert_equals_masked, random_removal
from tests.models.config import Config
from tests.models.masked import assert_close
from tests.models.snapshot import identical, untouched
from tests.models.transformer import build, tokens

X = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Two heads, dropout inside of the attention and after it."""

    def __init__(self, drop: float = 0.3, width: int = 12) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 30), nn.Linear(10, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 5)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        inside = self.drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=inside, is_causal=True)
        return self.drop(self.out(y.transpose(1, 2).flatten(-2)))


class Region(nn.Module):
    """A feed-forward block, a part of which runs in another context."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 9), nn.Linear(9, 12)
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            y = torch.relu(self.up(x))
        return self.down(y.to(x.dtype)) + x


def gradients(model: nn.Module, *args: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(*args).square().sum().backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def test_batch_and_sequence_stay_free() -> None:
    c = Config(position="learned", rope="half")
    compiled = ecospa_fx.compile(build(c), args=tokens(c))
    compiled.apply(random_removal(compiled, 0.3))
    for sizes in ((2, 7), (1, 1), (1, 5), (4, 2), (3, 21)):
        x = tokens(c, *sizes, seed=5)
        assert compiled(*x).shape == (*sizes, c.vocab)
        assert compiled.verify(*x).within(1e-9), sizes


def test_the_length_stays_free_after_a_call_with_one_token() -> None:
    compiled = ecospa_fx.compile(nn.Sequential(nn.Embedding(5, 4), Attention(0.0, 4)))
    assert compiled(torch.ones(2, 1, dtype=torch.long)).shape == (2, 1, 4)
    assert compiled(torch.ones(2, 6, dtype=torch.long)).shape == (2, 6, 4)


def test_outputs_and_gradients_equal_eager() -> None:
    c = Config(kv_heads=2, group=2, rope="interleaved", norm="rms_by_hand", qk_norm="head", tied=True)
    model = build(c)
    compiled = ecospa_fx.compile(model, args=tokens(c))
    x = tokens(c, 3, 9)
    assert_close(compiled(*x), model(*x), 1e-12, "output")
    found, expected = gradients(compiled, *x), gradients(model, *x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None)
        if gradient is not None:
            assert_close(found[name], gradient, 1e-12, name)


def test_inputs_get_gradients_too() -> None:
    compiled, x = ecospa_fx.compile(Attention(0.0), args=(X,)), X.clone().requires_grad_()
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(compiled.source(x).sum(), x)
    assert_close(found, expected, 1e-5, "input")


def test_modes_are_obeyed() -> None:
    compiled = ecospa_fx.compile(Attention(), args=(X,))
    assert compiled.training
    assert not torch.equal(compiled(X), compiled(X))
    compiled.eval()
    assert torch.equal(compiled(X), compiled(X))
    assert_close(compiled(X), compiled.source(X), 1e-5, "output")
    compiled.train()
    assert not torch.equal(compiled(X), compiled(X))


def test_dropout_inside_of_the_attention_alone() -> None:
    model = Attention()
    model.drop.eval()
    compiled = ecospa_fx.compile(model, args=(X,))
    assert not torch.equal(compiled(X), compiled(X))
    torch.manual_seed(3)
    found = compiled(X)
    torch.manual_seed(3)
    assert_close(found, model(X), 1e-5, "output")


def test_double_precision() -> None:
    compiled = ecospa_fx.compile(Attention(), args=(X,)).eval()
    compiled.to(torch.float64)
    assert compiled(X.double()).dtype is torch.float64
    assert_close(compiled(X.double()), compiled.source(X.double()), 1e-12, "output")
    compiled.apply(random_removal(compiled, 0.4))
    assert compiled.verify(X.double()).within(1e-12)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_autocast": lambda: torch.autocast("cpu", enabled=False),
    "none": contextlib.nullcontext,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_regions_keep_their_context(context: Callable[[], Any]) -> None:
    model = Region(context)
    compiled = ecospa_fx.compile(model, args=(X,))
    assert torch.equal(compiled(X), model(X))
    assert identical(gradients(compiled, X), gradients(model, X))
    assert [(c.kind, c.num_units) for c in compiled.couplings.of_kinds()] == [("ffn", 9)]
    compiled.apply(random_removal(compiled, 0.4))
    assert compiled.verify(X).within(1e-2 if context is CONTEXTS["autocast"] else 1e-5)


def ffn() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 12))


AUTO = torch.export.Dim.AUTO
SOURCES = {
    "module": lambda m: m,
    "symbolic trace": fx.symbolic_trace,
    "exported with keywords": lambda m: export(m, (), {"input": X}),
    "dynamic": lambda m: export(m, (), {"input": X}, dynamic_shapes={"input": {0: AUTO, 1: AUTO}}),
    "exported": lambda m: export(m, (X,)),
    "exported module": lambda m: export(m, (X,)).module(),
}


@pytest.mark.parametrize("convert", SOURCES.values(), ids=SOURCES)
def test_graphs_are_models_too(convert: Callable[[nn.Module], Any]) -> None:
    model = ffn()
    expected = model(X)
    compiled = ecospa_fx.compile(convert(model), kwargs={"input": X})
    assert torch.equal(compiled(X), expected)
    assert {n for n, _ in compiled.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert_equals_masked(compiled, X)
    assert sum(p.numel() for p in compiled.parameters()) < sum(p.numel() for p in ffn().parameters())


def test_an_exported_program_brings_its_inputs() -> None:
    assert [c.num_units for c in ecospa_fx.compile(export(ffn(), (), {"input": X})).couplings] == [9]


def test_the_meta_device() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    compiled = ecospa_fx.compile(
        model, kwargs={"input_ids": torch.ones(2, 9, dtype=torch.long, device="meta")}
    )
    kinds = [c.kind for c in compiled.couplings]
    assert [kinds.count(k) for k in ("qk", "vo", "ffn", "residual")] == [4, 4, 2, 1]
    compiled.apply(random_removal(compiled, 0.5))
    weight = compiled.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert weight.is_meta
    assert weight.shape == (36, 64)


class Tricky(nn.Module):
    """Answers otherwise while it is being captured."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ffn()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2 if torch.compiler.is_exporting() else 1)


def test_a_wrong_capture_is_refused() -> None:
    model = Tricky()
    with (
        untouched(model),
        pytest.raises(CaptureError, match=r"computes something else than the model.*check=False"),
    ):
        ecospa_fx.compile(model, args=(X,))


def test_a_wrong_capture_is_taken_on_demand() -> None:
    model = Tricky()
    compiled = ecospa_fx.compile(model, args=(X,), check=False)
    assert torch.equal(compiled(X), 2 * model(X))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training: bool) -> None:
    model = nn.Sequential(Attention(), nn.BatchNorm1d(7), Attention().eval()).train(training)
    model[2].eval()
    model(X).sum().backward()
    with untouched(model):
        compiled = ecospa_fx.compile(model, args=(X,))
        twin = copy.deepcopy(compiled)
        assert twin.training is compiled.training is training
    assert "forward" not in model.__dict__
    assert torch.backends.mha.get_fastpath_enabled()


def test_statistics_are_updated_as_in_eager() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(7), nn.Linear(12, 12))
    other = copy.deepcopy(model)
    compiled = ecospa_fx.compile(model, args=(X,))
    for net in (compiled, other):
        net(X)
    assert identical(dict(compiled.state_dict()), dict(other.state_dict()))
    assert int(compiled.get_buffer("1.num_batches_tracked")) == 1


class Experts(nn.Module):
    """Experts looped over by the places that are hit, behind a router that casts itself."""

    def __init__(self, careless: bool = False) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.up = nn.ModuleDict({f"expert_{i}": nn.Linear(8, 12) for i in range(3)})
        self.down = nn.ModuleDict({f"expert_{i}": nn.Linear(12, 8) for i in range(3)})
        self.careless = careless

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 8)
        self.router = self.router.to(torch.float64)
        chosen = self.router(flat.double()).argmax(-1)
        mask = F.one_hot(chosen, 3).T
        out = torch.zeros_like(flat)
        for place in (mask.sum(-1) > 0).nonzero():
            rows = torch.where(mask[place[0]])[0]
            hidden = self.up[f"expert_{place[0]}"](flat[rows]).relu()
            out = out.index_add(0, rows, self.down[f"expert_{place[0]}"](hidden))
            if self.careless:
                out = out + 1
        return out.reshape(x.shape)


def test_loops_over_experts_that_are_hit() -> None:
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(2, 7, 8)
    router = model.router
    compiled = ecospa_fx.compile(model, args=(x,))
    assert model.router is router
    assert {c.kind: c.num_units for c in compiled.couplings} == {"ffn": 12}
    assert len(compiled.couplings) == 3
    assert_equals_masked(compiled, torch.randn(3, 5, 8))


def test_a_loop_whose_body_counts_the_places_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError):
        ecospa_fx.compile(Experts(careless=True), args=(torch.randn(2, 7, 8),))


class Strided(nn.Module):
    """A layer whose window is a number in a buffer, which decides on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("window", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu()
        if x.shape[1] > int(self.window):
            hidden = hidden[:, : -self.window]
        return self.down(hidden)


def test_numbers_in_buffers_may_decide() -> None:
    torch.manual_seed(0)
    model = Strided()
    before = dict(model.named_buffers())
    compiled = ecospa_fx.compile(model, args=(torch.randn(2, 7, 8),))
    assert dict(model.named_buffers()) == before
    assert "window" not in vars(model)
    assert {c.kind: c.num_units for c in compiled.couplings} == {"ffn": 12}
    assert_equals_masked(compiled, torch.randn(3, 11, 8))
