"""Perplexities of several runs."""

from __future__ import annotations

from benchmarks.perplexities import joined

OURS = {"method": "gate", "ratio": 0.2, "steps": 0, "params": 80, "perplexity": 33.0}
PEER = {"method": "Torch-Pruning, Taylor", "ratio": 0.2, "steps": 0, "params": 80, "perplexity": 40.0}
PLAIN = {"command": "python -m benchmarks.quality", "machine": "m", "dense": 20.0, "rows": [OURS]}
BALANCED = {
    "command": "python -m benchmarks.quality --balance",
    "machine": "m",
    "dense": 22.0,
    "rows": [OURS],
}
PEERS = {"command": "peers", "machine": "m", "rows": [PEER, {"method": "norm", "ratio": 0.2, "error": "no"}]}


def test_without_rows_of_ours_there_is_no_table() -> None:
    assert joined([]) is None
    assert joined([PEERS]) is None


def test_runs_are_told_apart_and_each_is_over_its_own_dense_model() -> None:
    found = joined([PLAIN, BALANCED, PEERS])
    assert found is not None
    assert [r["method"] for r in found["rows"]] == ["gate", "balanced, gate", "Torch-Pruning, Taylor"]
    assert [r["perplexity"] for r in found["rows"]] == [33.0, 30.0, 40.0]


def test_of_equal_rows_the_first_counts() -> None:
    again = {**PLAIN, "dense": 10.0}
    found = joined([PLAIN, again])
    assert found is not None
    assert [r["perplexity"] for r in found["rows"]] == [33.0]


def test_the_dense_model_is_not_called_balanced() -> None:
    dense = {"method": "dense", "ratio": 0.0, "steps": 200, "params": 90, "perplexity": 22.0}
    found = joined([{**BALANCED, "rows": [dense]}])
    assert found is not None
    assert found["rows"][0]["method"] == "dense"
