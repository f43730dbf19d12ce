"""One library and one model: what a row says."""

import json

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import case, libraries
from benchmarks.peers.models import Shape


def test_ours_on_a_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    case.main(["ecospa-fx", "plain", "--layers", "1"])
    row = json.loads(capsys.readouterr().out)
    assert row["pruned"]
    assert row["runs"]
    assert row["parameters_after"] < row["parameters"]
    assert row["model_gib"] == pytest.approx(row["parameters"] * 4 / 2**30, abs=1e-4)
    assert {"seconds", "cpu_seconds", "peak_above_gib", "import_cpu_seconds", "load", "torch"} <= row.keys()


def test_ours_without_weights() -> None:
    row = case.measure("ecospa-fx", "llama", 1, "meta")
    assert row["pruned"]
    assert row["model_gib"] == 0


def test_a_library_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, tokens: Tensor, shape: Shape) -> nn.Module:
        raise ValueError("no such\nthing")

    monkeypatch.setitem(libraries.LIBRARIES, "json", ("", fails))
    row = case.measure("json", "plain", 1)
    assert (row["pruned"], row["error"]) == (False, "ValueError: no such")


def test_a_model_that_lost_nothing_was_not_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(libraries.LIBRARIES, "json", ("", lambda model, tokens, shape: model))
    row = case.measure("json", "plain", 1)
    assert (row["pruned"], row["runs"]) == (False, True)


def test_a_pruned_model_that_does_not_run() -> None:
    found = case.runs(nn.Linear(3, 2), torch.zeros(1, 4))
    assert found["runs"] is False
    newer = "addmm: "  # torch 2.15 names the operator
    assert found["error"].replace(newer, "").startswith("RuntimeError: mat1 and mat2")


def test_peak_memory_starts_anew_and_sees_what_is_held() -> None:
    before = case.fresh_peak()
    held = torch.ones(2**25)  # 128 MiB
    assert case.peak() - before > 0.1
    assert held.numel() == 2**25
