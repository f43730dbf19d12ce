"""The table of perplexities, and who reads which documents."""

from pathlib import Path

import torch

from benchmarks.methods import METHODS, Method, method, plain
from benchmarks.quality import batches, cells, table
from benchmarks.smollm2 import documents, shared_out

ROW = {"method": "gate", "ratio": 0.2, "steps": 0}


def test_a_line_for_each_method_and_a_column_for_each_ratio() -> None:
    found = [
        ROW | {"perplexity": 50.0},
        ROW | {"method": "random", "perplexity": 2e6},
        ROW | {"ratio": 0.1, "perplexity": 44.0},
        ROW | {"perplexity": 42.0, "steps": 10},
    ]
    lines = table(found, 40.0).splitlines()
    assert lines[0] == "dense: 40.00"
    assert lines[2] == "| method | 10% | 20% | 20%, 10 steps |"
    assert lines[4] == "| gate | 44.0 (1.10×) | 50.0 (1.25×) | 42.0 (1.05×) |"
    assert lines[5] == "| random |  | 2.0e+06 |  |"


def test_training_and_calibration_read_different_documents() -> None:
    training, calibration = shared_out(torch.arange(10)[:, None], 4)
    assert sorted([*training.flatten().tolist(), *calibration.flatten().tolist()]) == list(range(10))
    assert calibration.flatten().tolist() == [0, 3, 6, 9]
    assert len(shared_out(torch.arange(4)[:, None], 4)[0]) == 4


def test_documents_become_batches() -> None:
    assert [len(b["input_ids"]) for b in batches(torch.zeros(5, 3, dtype=torch.long), 2)] == [2, 2, 1]


def test_any_score_and_allocation_make_a_row() -> None:
    assert method("taylor/uniform") == Method("taylor", "uniform")
    assert method("gate") == METHODS["gate"]
    assert method("dense") == Method("dense", "")


def test_a_method_repairs_if_its_name_says_so() -> None:
    assert all((how.repair is not None) == ("repaired" in name) for name, how in METHODS.items())


def test_with_nothing_gone_all_methods_are_the_dense_model() -> None:
    assert cells([0.0, 0.2], ["gate", "random"]) == [(0.0, "dense"), (0.2, "gate"), (0.2, "random")]


def test_plain_methods_have_no_repair() -> None:
    assert {n for n, how in METHODS.items() if how.repair is None} == set(plain())


def test_web_pages_are_read_without_markup(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<head><title>no</title></head><p>One &lt; <b>two</b>\n words</p>")
    (tmp_path / "b.txt").write_text("plain")
    assert documents(tmp_path) == ["One < two words", "plain"]
