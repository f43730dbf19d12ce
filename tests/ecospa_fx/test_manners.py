"""A compiled model is an ordinary module: compilers, exporters, transforms and threads take it as such."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

import ecospa_fx
from ecospa_fx import CaptureError, CompiledModel
from ecospa_fx.testing import random_removal
from tests.models.config import Config
from tests.models.transformer import build, tokens

C = Config(kv_heads=2, group=2, rope="half", activation="swiglu")
X = tokens(C)


@pytest.fixture(name="compiled")
def _compiled(once: CompiledModel) -> CompiledModel:
    return copy.deepcopy(once)


@pytest.fixture(name="once", scope="module")
def _once() -> CompiledModel:
    compiled = ecospa_fx.compile(build(C), args=X)
    compiled.apply(random_removal(compiled, 0.4))
    return compiled


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return [
        g
        for g in torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True)
        if g is not None
    ]


def test_torch_compile_does_not_trace_every_step(compiled: CompiledModel) -> None:
    counter = CompileCounter()
    fast = torch.compile(compiled, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    compiled(*X)
    for _ in range(2):
        for size in (3, 4, 5):
            x = tokens(C, size, size + 8)
            torch.testing.assert_close(fast(*x), compiled(*x))
            frames.append(counter.frame_count)
        compiled.apply(random_removal(compiled, 0.4, seed=1))
    assert frames[:3] == [1, 1, 1]
    assert frames[4] == frames[5] <= 3  # the first step after a round, and the first of another size


def test_torch_compile_of_a_transformers_model() -> None:
    config = hf.LlamaConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4, vocab_size=31
    )
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config))
    ids = torch.randint(31, (2, 7))
    expected = compiled(ids, labels=ids, use_cache=False).loss
    found = torch.compile(compiled, backend="eager", fullgraph=True)(ids, labels=ids, use_cache=False)
    torch.testing.assert_close(found.loss, expected)


def test_export_and_back(compiled: CompiledModel, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(compiled, X), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    torch.testing.assert_close(loaded.module()(*X), compiled(*X))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in compiled.parameters())


def test_a_call_that_is_new_while_torch_traces(compiled: CompiledModel) -> None:
    compiled.float()
    with pytest.raises(CaptureError, match=r"call the model once before torch\.compile"):
        torch.export.export(compiled, X)


@pytest.mark.filterwarnings("ignore")
def test_onnx(compiled: CompiledModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    compiled.float()
    expected = compiled(*X)
    program = torch.onnx.export(compiled, X, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    inputs = {i.name: x.numpy() for i, x in zip(session.get_inputs(), X, strict=True)}
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, inputs)[0]), expected.detach(), rtol=1e-3, atol=1e-4
    )


def test_pickle_says_what_to_do(compiled: CompiledModel) -> None:
    with pytest.raises(TypeError, match=r"use compiled\.save\(path\)"):
        pickle.dumps(compiled)


def test_a_copy_has_tensors_of_its_own(compiled: CompiledModel) -> None:
    twin = copy.deepcopy(compiled).to(torch.float32)
    assert twin(*X).dtype is torch.float32
    assert compiled(*X).dtype is torch.float64


def test_dtypes_and_the_meta_device(compiled: CompiledModel) -> None:
    assert compiled.half()(*X).dtype is torch.half
    assert compiled.to(torch.bfloat16)(*X).dtype is torch.bfloat16
    assert compiled.to("meta")(*(x.to("meta") for x in X)).is_meta


def test_frozen_parts_get_no_gradient(compiled: CompiledModel) -> None:
    compiled.embed.requires_grad_(False)
    compiled(*X).sum().backward()
    assert compiled.embed.weight.grad is None
    assert compiled.head.weight.grad is not None


def test_hooks_of_the_compiled_model_run_and_those_inside_do_not(compiled: CompiledModel) -> None:
    seen: list[str] = []
    compiled.register_forward_hook(lambda *_: seen.append("outer"))
    compiled.head.register_forward_hook(lambda *_: seen.append("inner"))
    compiled(*X)
    assert seen == ["outer"]


def test_checkpointing(compiled: CompiledModel) -> None:
    y: Any = checkpoint(compiled, *X, use_reentrant=False)
    for found, expected in zip(gradients(compiled, y), gradients(compiled, compiled(*X)), strict=True):
        torch.testing.assert_close(found, expected)


def test_autocast(compiled: CompiledModel) -> None:
    compiled.float()
    expected = compiled(*X)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(*X)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)


def test_function_transforms(compiled: CompiledModel) -> None:
    doubled = {n: 2 * p.detach() for n, p in compiled.named_parameters()}
    stacked = [torch.stack([x, x.flip(0)]) for x in X]
    found = functional_call(compiled, doubled, X)
    torch.testing.assert_close(vmap(lambda *x: compiled(*x))(*stacked)[0], compiled(*X))
    with torch.no_grad():
        for p in compiled.parameters():
            p.mul_(2)
    torch.testing.assert_close(found, compiled(*X))


def test_training_after_a_capture_in_inference_mode() -> None:
    compiled = ecospa_fx.compile(build(C))
    with torch.inference_mode():
        compiled(*X)
    assert gradients(compiled, compiled(*X))


def test_threads_that_call_a_new_model_at_once() -> None:
    compiled = ecospa_fx.compile(build(C))
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(*X))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, found[0]) for y in found)
    assert len(found) == 3
    assert len(list(compiled.signatures)) == 1


def test_inference_mode_after_a_removal(compiled: CompiledModel) -> None:
    expected = compiled(*X)
    with torch.inference_mode():
        found = compiled(*X)
    assert found.is_inference()
    torch.testing.assert_close(found, expected)
    assert gradients(compiled, compiled(*X))


def test_a_copy_goes_its_own_way(compiled: CompiledModel) -> None:
    """Values, later removals and training of one do not reach the other."""
    expected = compiled(*X).detach()
    twin = copy.deepcopy(compiled)
    torch.testing.assert_close(twin(*X), expected)
    twin.apply(random_removal(twin, 0.4, seed=2))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    torch.testing.assert_close(compiled(*X), expected)
    assert compiled.verify(*X).within(1e-9)


def test_a_frozen_model_computes_and_trains_nothing(compiled: CompiledModel) -> None:
    expected = compiled(*X)
    compiled.requires_grad_(False)
    found = compiled(*X)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert all(p.requires_grad for p in compiled.requires_grad_().parameters())


def test_threads_after_a_removal(compiled: CompiledModel) -> None:
    """One trains while the other infers, with sizes of their own."""
    inputs = [tokens(C, 3, 1), tokens(C, 5, 2)]
    expected = [compiled(*x).detach() for x in inputs]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        with torch.set_grad_enabled(i == 0):
            for _ in range(3):
                found[i] = compiled(*inputs[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(expected):
        torch.testing.assert_close(found[i].detach(), y)
    assert [found[i].requires_grad for i in range(2)] == [True, False]
