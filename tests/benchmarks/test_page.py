"""The page has a part for each kind of result, and leaves what stands above it."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.store import Store

pytest.importorskip("matplotlib")
RUN = {
    "ratio": 0.5, "round_to": 8, "heads": "uniform", "inductor": False, "what": "prefill", "dense_ms": 2.0,
    "ms": 1.0, "speedup": 2.0, "low": 1.5, "high": 2.5, "flop_speedup": 2.0, "share": 1.0, "bytes": 10,
    "bytes_share": 0.5,
}  # fmt: skip
CASE = {
    "library": "ours", "model": "small", "layers": 2, "parameters": 2_000_000, "parameters_after": 1_000_000,
    "pruned": True, "runs": True, "cpu_seconds": 1.25, "seconds": 2.5, "peak_above_gib": 0.5,
    "model_gib": 1.0,
}  # fmt: skip
MACHINE = {"processor": "some", "load": 1.5}


def result(section: str, *rows: Any, command: str = "", **more: Any) -> dict[str, Any]:
    return {"section": section, "command": command or f"python -m {section}", "machine": MACHINE,
            "rows": list(rows), "took_s": 3.0, **more}  # fmt: skip


def written(
    tmp_path: Path, *results: dict[str, Any], quality: Any = None, missing: tuple[str, ...] = ()
) -> str:
    store = Store(tmp_path / "results.json")
    for found in results:
        store.add(found)
    page.write(tmp_path / "benchmarks.md", store, quality, missing)
    return (tmp_path / "benchmarks.md").read_text()


def test_tables_and_plots(tmp_path: Path) -> None:
    text = written(tmp_path, result("peers", CASE), result("depth", CASE), result("runs", RUN))
    assert "| small | ours | 1.25 | 2.50 | 0.50 | 1.00 | 2.0 → 1.0 M | yes |" in text
    assert "| 2 | 1.25 |" in text
    assert "| 50% | 8 | uniform | prefill | 2.00 | 2.00 | 1.50 to 2.50 | 100% | 50% |" in text
    for name in ("depth", "speedup"):
        assert f"(benchmarks/{name}.svg)" in text
        assert (tmp_path / "benchmarks" / f"{name}.svg").read_text().startswith("<?xml")
    assert "On processor some:" in text
    assert "| `python -m peers` | 1.5 | 3.0 | well |" in text


def test_failures_are_told_in_their_own_words(tmp_path: Path) -> None:
    said = {"library": "other", "model": "small", "parameters": 5, "pruned": False, "error": "KeyError: a|b"}
    command = "python -m benchmarks.peers.case other large --layers 4"
    silent = result("depth", command=command, error="stopped after 9 s")
    text = written(tmp_path, result("peers", said), result("depth", CASE), silent)
    assert "KeyError: a\\|b |" in text
    assert "- other, large, 4: stopped after 9 s" in text
    assert "| 4 |  | failed |" in text


def test_quality_from_its_own_result(tmp_path: Path) -> None:
    row = {"method": "gate", "ratio": 0.2, "params": 5_000_000, "steps": 0, "perplexity": 30.0}
    told = {"dense": 20.0, "machine": "the machine", "rows": [row | {"others": {"books": 2e6}}, row]}
    text = written(tmp_path, quality=told)
    assert "| gate | 20% | 5.0 | 30.0 | 1.50 | 2e+06 |" in text
    assert "| gate | 20% | 5.0 | 30.0 | 1.50 |  |" in text
    assert "dense: 20.00. the machine" in text
    assert "Not measured in this run" in written(tmp_path)


def test_the_reverse_dictionary_has_the_best_first_and_says_what_failed(tmp_path: Path) -> None:
    rows = [
        {"method": "random", "ratio": 0.2, "params": 1_000_000, "top1": 20.0},
        {"method": "gate", "ratio": 0.2, "params": 1_000_000, "top1": 50.0},
        {"method": "other", "ratio": 0.2, "error": "no such axis"},
    ]
    text = written(tmp_path, result("dictionary", *rows))
    assert text.index("| gate | 20% | 1.0 | 50.00 |") < text.index("| random | 20% | 1.0 | 20.00 |")
    assert "- other, 0.2: no such axis" in text


def test_words_above_the_mark_stay(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text(f"# Mine\n\n{page.MARK}\nold")
    text = written(tmp_path, missing=("python -m late",))
    assert text.startswith(f"# Mine\n\n{page.MARK}")
    assert "old" not in text
    assert "- `python -m late`" in text
