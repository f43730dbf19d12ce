"""Which rows become which points."""

from pathlib import Path

import pytest

from benchmarks import plots


def test_depth_takes_what_was_pruned() -> None:
    rows = [
        {"library": "a", "model": "m", "layers": n, "cpu_seconds": float(n), "pruned": n < 3}
        for n in (1, 2, 3)
    ]
    assert plots.depth(rows) == {"a, m": [(1, 1.0), (2, 2.0)]}


def test_speedups_by_pattern() -> None:
    row = {
        "ratio": 0.5,
        "what": "prefill",
        "round_to": 8,
        "heads": "uniform",
        "flop_speedup": 2.0,
        "speedup": 1.9,
    }
    untouched = {**row, "ratio": 0.0}
    failed = {"ratio": 0.5, "round_to": 8, "heads": "uniform", "error": "no"}
    ragged = {**row, "heads": "ragged"}
    assert plots.speedup([row, untouched, failed, ragged]) == {
        "prefill, multiples of 8": [(2.0, 1.9)],
        "prefill, ragged heads": [(2.0, 1.9)],
    }


def test_quality_is_over_the_dense_model() -> None:
    row = {"method": "gate", "params": 2_000_000, "perplexity": 30.0, "steps": 5}
    assert plots.quality({"dense": 20.0, "rows": [row]}) == {"gate, 5 steps": [(2.0, 1.5)]}


def test_the_same_points_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = {"a": [(1.0, 2.0), (2.0, 3.0)], "b": [(1.0, 1.0)]}
    for name in ("one.svg", "two.svg"):
        plots.plot(tmp_path / name, lines, "x", "y", log=True, equal=True)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
