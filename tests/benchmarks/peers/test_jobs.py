"""Which library gets which model, and with which interpreter."""

import sys

import pytest

from benchmarks.peers.jobs import jobs


@pytest.mark.parametrize("quick", [True, False])
def test_without_the_others_ours_alone(quick: bool) -> None:
    found = jobs(None, quick)
    assert {job.arguments[2] for job in found} == {"ecospa-fx"}
    assert {job.python for job in found} == {sys.executable}


def test_every_library_runs_with_its_interpreter() -> None:
    found = jobs("theirs", quick=False)
    by_library = {job.arguments[2]: job.python for job in found}
    assert by_library.pop("ecospa-fx") == sys.executable
    assert set(by_library) == {"torch-pruning", "torch-kirigami", "torch-kirigami, hidden units"}
    assert set(by_library.values()) == {"theirs"}


def test_large_models_have_no_weights() -> None:
    large = [job for job in jobs("theirs", quick=False) if "7b" in job.command or "70b" in job.command]
    assert [job.arguments[-2:] for job in large] == [("--device", "meta")] * 2
    assert all("ecospa-fx" in job.command for job in large)


@pytest.mark.parametrize("quick", [True, False])
def test_commands_differ(quick: bool) -> None:
    commands = [job.command for job in jobs("theirs", quick)]
    assert len(set(commands)) == len(commands)
