"""Workers: one forked process per job, with a time limit, results as they come."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

Job = Callable[[str], dict[str, Any]]


def run(
    job: Job, names: Sequence[str], workers: int, limit: float
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Run ``job`` on every name, each in a process of its own.

    Args:
        job: from a name to a JSON-ready result; imported before the first fork.
        names: what to run it on.
        workers: processes at a time.
        limit: seconds until a process is ended.

    Yields:
        Name and result in the order of completion; None for a process that died or was ended.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(names))
    running: dict[Connection, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, waiting[-1], there), daemon=True)
            process.start()
            there.close()
            running[here] = (waiting.pop(), process, time.monotonic() + limit)
        ready = set(wait(list(running), timeout=0.5))
        for connection in list(running):
            name, process, deadline = running[connection]
            if connection in ready or time.monotonic() > deadline:
                result = _received(connection) if connection in ready else None
                process.kill()
                process.join()
                del running[connection]
                yield name, result


def _child(job: Job, name: str, connection: Connection) -> None:
    connection.send(job(name))


def _received(connection: Connection) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = connection.recv()
    except EOFError:
        return None
    return result
