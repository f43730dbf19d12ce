"""What the experiments compare is what they say, and the page is written from the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ecospa_fx
from benchmarks.experiments import record
from benchmarks.experiments.figure import shares
from benchmarks.experiments.masked import Masked
from benchmarks.experiments.page import Page
from benchmarks.experiments.vision import deit
from ecospa_fx import CompiledModel, Couple

X = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="compiled", scope="module")
def _compiled() -> CompiledModel:
    return ecospa_fx.compile(deit(0, width=16), kwargs={"pixel_values": X})


def masked(compiled: CompiledModel) -> Masked:
    return Masked(compiled, torch.optim.AdamW(compiled.parameters()))


def couple(compiled: CompiledModel, kind: str) -> Couple:
    return next(c for c in compiled.couplings.couples if c.kind == kind)


def kept(one: Masked, name: str) -> list[Tensor]:
    """For each matrix of a couple, which of its rows are not zero."""
    found = []
    for parameter, axis, indices in one.places[name]:
        rows = one.parameters[parameter].detach().index_select(axis, indices)
        found.append(rows.abs().sum(1 - axis) > 0)
    return found


@pytest.mark.parametrize("kind", ["qk", "vo", "ffn"])
def test_every_matrix_keeps_as_many(compiled: CompiledModel, kind: str) -> None:
    before = {n: p.detach().clone() for n, p in compiled.named_parameters()}
    chosen = couple(compiled, kind)
    one = masked(compiled)
    one.individually(chosen, 2)
    first, second = kept(one, chosen.name)
    assert first.sum() == second.sum() == 2
    compiled.load_state_dict(before)
    one = masked(compiled)
    one.aligned(chosen, 2)
    first, second = kept(one, chosen.name)
    assert first.sum() == 2
    assert torch.equal(first, second)
    compiled.load_state_dict(before)


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_truncation_is_the_best_approximation_of_the_product(compiled: CompiledModel, kind: str) -> None:
    before = {n: p.detach().clone() for n, p in compiled.named_parameters()}
    chosen, one = couple(compiled, kind), masked(compiled)
    first, second = one.places[chosen.name]
    product = one._with_bias(first).T @ one._with_bias(second)
    one.truncated(chosen, 2)
    found = one._with_bias(first).T @ one._with_bias(second)
    singular = torch.linalg.svdvals(product)
    torch.testing.assert_close((product - found).norm(), singular[2:].norm(), rtol=1e-4, atol=1e-6)
    compiled.load_state_dict(before)


def test_shares_rise_to_the_ratio() -> None:
    found = shares(8, 0.7)
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] == found[5] == pytest.approx(0.7)


RESULTS: dict[str, dict[str, Any]] = {
    "figure": {
        "images": 9,
        "epochs": 2,
        "ratio": 0.5,
        "gone": [0.0, 0.5],
        "accuracy": {"dense": [[1.0, 2.0]]},
    },
    "sweep": {
        "images": 9,
        "epochs": 1,
        "ratio": 0.5,
        "runs": [{"top_k": 0.1, "threshold": 0.5, "accuracy": [[7]]}],
    },
}


def test_the_page_has_a_section_for_each_result(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "experiments"
    for name, result in RESULTS.items():
        record.save(name, result, 3.2, folder)
    (folder / "sweep.md").write_text("What it shows: nothing.")
    text = Page(folder).write().read_text()
    assert "| dense | 2.0 | 2.0 |" in text
    assert "| K = 0.1 | 7 |" in text
    assert text.endswith("What it shows: nothing.\n")
    assert "experiments/figure.svg" in text
    assert "MiniLM" not in text
    assert str(tmp_path) not in text
