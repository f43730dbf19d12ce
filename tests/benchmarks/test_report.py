"""What one report runs."""

from pathlib import Path

import pytest

from benchmarks import page, quality_jobs, report


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


def test_every_command_that_measured_perplexity_is_in_one_table(tmp_path: Path) -> None:
    store = report.Store(tmp_path / "results.json")
    assert report.quality(store) is None
    row = {"method": "gate", "ratio": 0.2, "steps": 0, "perplexity": 4.0}
    about = {"dense": 2.0, "command": "c", "machine": "m"}
    store.add({"section": "quality", "command": "c", "rows": [row], "about": about})
    store.add({"section": "quality", "command": "d", "rows": [], "error": "failed"})
    found = report.quality(store)
    assert found is not None
    assert found["rows"] == [row]


@pytest.mark.parametrize("peers", [None, "python"])
def test_rows_of_other_libraries_only_with_an_interpreter_that_has_them(peers: str | None) -> None:
    commands = [j.command for j in quality_jobs.jobs(peers, False, Path("brown"), [Path("more")])]
    assert len(set(commands)) == len(commands)
    assert any("benchmarks.peers" in c for c in commands) == (peers is not None)
    assert all("--corpus brown" in c for c in commands if "quality" in c)
