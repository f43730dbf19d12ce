"""Deployment: a smaller causal model as ``.pt2``, as ONNX and as a library, for any batch and length."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.export import Dim, ExportedProgram

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.testing import random_removal

SHAPES = {"input_ids": {0: Dim("batch"), 1: Dim("length", max=64)}}


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, 31, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture(name="smaller", scope="module")
def _smaller() -> CompiledModel:
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config).eval(), args=(tokens(2, 7),))
    compiled.apply(random_removal(compiled, 0.4))
    return compiled


@pytest.fixture(name="exported", scope="module")
def _exported(smaller: CompiledModel) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(smaller, (tokens(2, 7),), dynamic_shapes=SHAPES)


def check(run: Callable[[Tensor], Any], compiled: CompiledModel) -> None:
    for batch, length in ((4, 3), (2, 9), (3, 33)):
        x = tokens(batch, length)
        torch.testing.assert_close(run(x), compiled(x).logits, rtol=1e-4, atol=1e-5)


def test_pt2(smaller: CompiledModel, exported: ExportedProgram, tmp_path: Path) -> None:
    torch.export.save(exported, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    check(lambda x: module(x).logits, smaller)
    again = ecospa_fx.compile(torch.export.load(tmp_path / "model.pt2"))
    check(lambda x: again(x).logits, smaller)


def test_a_call_by_keywords() -> None:
    """Every head reads its own rotary tables, by an index that is broadcast over free sizes."""
    config = hf.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4
    )
    call = {"input_ids": tokens(2, 7), "use_cache": False}
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config).eval(), kwargs=call)
    compiled.apply(random_removal(compiled, 0.4))
    assert inspect.signature(compiled.forward) == inspect.signature(compiled.source.forward)
    module = torch.export.export(compiled, (), call, dynamic_shapes={**SHAPES, "use_cache": None}).module()
    check(lambda x: module(input_ids=x, use_cache=False).logits, compiled)


@pytest.mark.filterwarnings("ignore")
def test_onnx(smaller: CompiledModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    free = {"input_ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    program = torch.onnx.export(
        smaller, (tokens(2, 7),), dynamic_shapes=free, input_names=["input_ids"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    check(lambda x: torch.from_numpy(session.run(None, {"input_ids": x.numpy()})[0]), smaller)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_library(smaller: CompiledModel, exported: ExportedProgram, tmp_path: Path) -> None:
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    module = torch._inductor.aoti_load_package(path)
    check(lambda x: module(x).logits, smaller)
