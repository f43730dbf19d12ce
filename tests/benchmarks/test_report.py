"""What one report runs."""

import json
from pathlib import Path

import pytest

from benchmarks import page, report


def test_without_time_the_page_names_every_command(tmp_path: Path) -> None:
    file, text = tmp_path / "results.json", tmp_path / "benchmarks.md"
    report.main(["--json", str(file), "--page", str(text), "--minutes", "0", "--quick"])
    assert page.MARK in text.read_text()
    for job in report.own_jobs(quick=True):
        assert f"- `{job.command}`" in text.read_text()


@pytest.mark.parametrize("quick", [True, False])
def test_commands_differ(quick: bool) -> None:
    commands = [job.command for job in report.own_jobs(quick)]
    assert len(set(commands)) == len(commands)


def test_quality_of_an_earlier_run(tmp_path: Path) -> None:
    told = tmp_path / "quality.json"
    told.write_text(json.dumps({"dense": 1.0, "rows": []}))
    options = report.arguments(["--json", str(tmp_path / "results.json"), "--quality", str(told)])
    assert report.quality(options, report.Store(options.json)) == {"dense": 1.0, "rows": []}


def test_quality_of_this_run(tmp_path: Path) -> None:
    options = report.arguments(["--json", str(tmp_path / "results.json")])
    store = report.Store(options.json)
    assert report.quality(options, store) is None
    store.add({"section": "quality", "command": "c", "rows": [{"a": 1}], "about": {"dense": 2.0}})
    assert report.quality(options, store) == {"dense": 2.0, "rows": [{"a": 1}]}
