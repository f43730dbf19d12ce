"""Results of many commands in one JSON file, each run in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
FILE = "{json}"
"""Stands in a command for the file to which it writes its result."""


@dataclass(frozen=True)
class Job:
    """One command, of Python.

    Attributes:
        section: what its rows are kept under.
        arguments: of the interpreter, ``("-m", "benchmarks.depth", "--json", FILE)`` say.
        seconds: after which it is stopped, which is a result too.
        python: the interpreter, if it is another.
        timed: nothing may run beside it.
    """

    section: str
    arguments: tuple[str, ...]
    seconds: float = 600.0
    python: str = field(default=sys.executable, compare=False)
    timed: bool = True

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", *self.arguments]).replace(f" --json '{FILE}'", "")


def machine() -> Row:
    """What figures are taken on; the load is that before the command, in processes that want a core."""
    import torch

    return {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores", "system": platform.system(),
        "python": platform.python_version(), "torch": torch.__version__,
        "threads": _variables()["OMP_NUM_THREADS"], "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _variables() -> dict[str, str]:
    """The environment of every command: one thread, unless the user says otherwise."""
    return {"OMP_NUM_THREADS": "1", **os.environ}


def run(job: Job) -> Row:
    """What a job gave: rows, or why there are none; the command, the machine and the time in any case."""
    found: Row = {"section": job.section, "command": job.command, "machine": machine()}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        command = [job.python, *(str(file) if a == FILE else a for a in job.arguments)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=_variables(), capture_output=True, text=True, timeout=job.seconds
            )
        except subprocess.TimeoutExpired:
            found |= {"rows": [], **_written(file), "error": f"stopped after {job.seconds:g} s"}
        else:
            found |= outcome(done, file)
    return found | {"took_s": round(time.perf_counter() - start, 1)}


def outcome(done: subprocess.CompletedProcess[str], file: Path) -> Row:
    """Rows of the file, or of the lines that are JSON; and the last words of one that failed."""
    found = _written(file)
    if not found:
        found = {"rows": [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]}
    if done.returncode == 0:
        return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {**found, "error": f"exit status {done.returncode}: {last[:300]}"}


def _written(file: Path) -> Row:
    """What a command has written to its file so far."""
    if not file.exists():
        return {}
    given: Any = json.loads(file.read_text())
    if not isinstance(given, dict):
        return {"rows": given, "about": {}}
    rows = given.pop("rows", None)
    if rows is None:
        return {"rows": [given], "about": given}
    given.pop("command", None)  # with the name of a file that is gone; the job knows it
    return {"rows": rows, "about": given}


class Store:
    """Results by command, written after each.

    Args:
        file: the JSON file.
        resume: start from what it holds; otherwise from nothing.
    """

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.file, self._alone = file, threading.Lock()
        known = json.loads(file.read_text())["results"] if resume and file.exists() else []
        self.results: dict[str, Row] = {r["command"]: r for r in known}

    def section(self, name: str) -> list[Row]:
        """All results of one section, in the order of their making."""
        return [r for r in self.results.values() if r["section"] == name]

    def __contains__(self, job: Job) -> bool:
        return job.command in self.results

    def add(self, result: Row) -> None:
        """Keep one result; the file is whole at any time."""
        with self._alone:
            self.results[result["command"]] = result
            self.file.parent.mkdir(parents=True, exist_ok=True)
            beside = self.file.with_suffix(".part")
            beside.write_text(json.dumps({"results": list(self.results.values())}, indent=1) + "\n")
            beside.replace(self.file)


def run_all(jobs: Sequence[Job], store: Store, seconds: float, abreast: int = 1) -> list[Job]:
    """Run what the store does not hold; what no time was left for comes back.

    Args:
        jobs: those that are timed run first, each on its own.
        store: where results go.
        seconds: after which nothing begins, and what runs is stopped.
        abreast: how many of the others run at a time.
    """
    left = [job for job in jobs if job not in store]
    keep = partial(_keep, store=store, end=time.monotonic() + seconds, number=len(left) + len(store.results))
    with ThreadPoolExecutor(abreast) as pool:
        for job in left:
            if job.timed:
                keep(job)
        list(pool.map(keep, [job for job in left if not job.timed]))
    return [job for job in left if job not in store]


def _keep(job: Job, store: Store, end: float, number: int) -> None:
    """Its result goes into the store, if there is time enough."""
    remaining = end - time.monotonic()
    if remaining <= 0:
        return
    print(f"{len(store.results)} of {number} done, now: {job.command}", file=sys.stderr, flush=True)
    result = run(replace(job, seconds=min(job.seconds, remaining)))
    if remaining >= job.seconds or not result.get("error", "").startswith("stopped"):
        store.add(result)
