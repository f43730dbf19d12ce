"""Runs of several sizes: who takes part, and what a row says."""

import json

import pytest

from benchmarks import runs

SMALL = ["--width", "32", "--hidden", "48", "--heads-count", "2", "--kv-heads", "2", "--layers", "1",
         "--prompt", "4", "--rounds", "1"]  # fmt: skip


def test_a_row_for_each_model_and_run(capsys: pytest.CaptureFixture[str]) -> None:
    runs.main([*SMALL, "--ratios", "0.5", "--round-to", "1", "16"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    made = [row for row in rows if "error" not in row]
    patterns = {(r["ratio"], r["round_to"], r["heads"]) for r in made}
    assert {(0.0, 1, "uniform"), (0.5, 1, "uniform"), (0.5, 1, "ragged"), (0.5, 1, "whole"),
            (0.5, 1, "same-pair")} <= patterns  # fmt: skip
    assert len(made) == 2 * len(patterns)
    smaller = next(r for r in made if r["ratio"] and r["what"] == "training")
    assert smaller["flop_speedup"] > 1 > smaller["bytes_share"]
    assert smaller["share"] == pytest.approx(smaller["speedup"] / smaller["flop_speedup"], abs=1e-3)


def test_what_cannot_be_made_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    runs.main([*SMALL, "--ratios", "0.9", "--round-to", "32", "--heads", "uniform"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["error"].split(":")[0] for row in rows if "error" in row] == ["PlanError"]
