"""Commands run on their own; results are kept, and resumed from."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.store import FILE, Job, Store, run, run_all

ROWS = ("-c", "print('words'); print('{\"a\": 1}'); print('{\"a\": 2}')")
FAILS = ("-c", "print('{\"a\": 1}'); raise ValueError('too small')")
WRITES = ("-c", f"import sys; open(sys.argv[2], 'w').write('{json.dumps({'dense': 3, 'rows': [{'b': 1}]})}')")


def test_lines_that_are_json_are_rows() -> None:
    result = run(Job("s", ROWS))
    assert result["rows"] == [{"a": 1}, {"a": 2}]
    assert "error" not in result
    assert {"processor", "python", "torch", "threads", "load"} <= result["machine"].keys()


def test_a_failure_keeps_its_last_words_and_what_it_had() -> None:
    result = run(Job("s", FAILS))
    assert result["rows"] == [{"a": 1}]
    assert result["error"] == "exit status 1: ValueError: too small"


def test_the_file_goes_before_the_lines_and_is_no_part_of_the_command() -> None:
    job = Job("s", (*WRITES, "--json", FILE))
    result = run(job)
    assert (result["rows"], result["about"]) == ([{"b": 1}], {"dense": 3})
    assert FILE not in result["command"]


def test_a_command_that_does_not_end_is_stopped() -> None:
    result = run(Job("s", ("-c", "import threading; threading.Event().wait()"), seconds=1.0))
    assert (result["rows"], result["error"]) == ([], "stopped after 1 s")


def test_resuming_runs_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, jobs = tmp_path / "results.json", [Job("s", ROWS), Job("t", FAILS)]
    assert run_all(jobs[:1], Store(file), 60.0) == []
    store = Store(file, resume=True)
    assert jobs[0] in store
    assert run_all(jobs, store, 60.0) == []
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" done")[0] for line in said] == ["0 of 1", "1 of 2"]
    assert [len(store.section(name)) for name in "st"] == [1, 1]
    assert Store(file).results == {}


def test_without_time_everything_is_left(tmp_path: Path) -> None:
    jobs = [Job("s", ROWS)]
    assert run_all(jobs, Store(tmp_path / "results.json"), 0.0) == jobs


def test_what_the_end_of_the_time_has_stopped_is_no_result(tmp_path: Path) -> None:
    job = Job("s", ("-c", "import threading; threading.Event().wait()"))
    store = Store(tmp_path / "results.json")
    assert run_all([job], store, 0.5) == [job]
    assert job not in store


def test_a_job_is_its_command_whatever_the_interpreter() -> None:
    assert Job("s", ROWS, python="elsewhere") == Job("s", ROWS, python=sys.executable)
    assert Job("s", ("-m", "x", "two words")).command == "python -m x 'two words'"


def test_what_is_not_timed_comes_last_and_side_by_side(tmp_path: Path) -> None:
    meets = "import pathlib, sys; own, other = map(pathlib.Path, sys.argv[1:]); own.touch()"
    waits = "while not other.exists(): pass"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    pair = [Job("s", ("-c", f"{meets}\n{waits}", *names), timed=False) for names in ((one, two), (two, one))]
    store = Store(tmp_path / "results.json")
    assert run_all([*pair, Job("t", ROWS)], store, 120.0, abreast=2) == []
    assert [r["section"] for r in store.results.values()] == ["t", "s", "s"]
    assert not any("error" in r for r in store.results.values())


def test_one_thread_unless_the_user_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Job("s", ("-c", "import os; print('{\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}')"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(told)["rows"] == [{"threads": 1}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(told)["rows"] == [{"threads": 3}]
    assert run(told)["machine"]["threads"] == "3"
