"""Perplexities of several runs."""

from __future__ import annotations

from benchmarks.perplexities import joined

OURS = {"method": "gate", "ratio": 0.2, "params": 80, "perplexity": 33.0}
PEER = {"score": "Taylor", "global": True, "ratio": 0.2, "params": 80, "perplexity": 40.0}
COMMAND = "python -m benchmarks.quality --balance --gradients 24"


def test_one_run_stays() -> None:
    assert joined({"dense": 20.0, "rows": [OURS]}) == {"dense": 20.0, "rows": [OURS]}


def test_runs_are_told_apart_and_each_is_over_its_own_dense_model() -> None:
    runs = [
        {"command": COMMAND, "machine": "m", "dense": 22.0, "rows": [OURS]},
        {"command": "peers", "machine": "m", "rows": [PEER]},
    ]
    found = joined({"dense": 20.0, "runs": runs})
    assert [r["method"] for r in found["rows"]] == [
        "balanced, gate, 24 documents",
        "Torch-Pruning, Taylor, global",
    ]
    assert [r["perplexity"] for r in found["rows"]] == [30.0, 40.0]
    assert found["command"] == f"{COMMAND}`, `peers"
