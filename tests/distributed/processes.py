"""Checks that share two processes, because processes take seconds to start."""

from __future__ import annotations

import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ecospa_fx import EcoSpaError

RANKS = 2
Check = Callable[[Path], None]


def _worker(rank: int, port: int, folder: str, checks: Sequence[Check]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    try:
        for check in checks:
            check(Path(folder))
            dist.barrier()
            Path(folder, f"{check.__name__}.{rank}").touch()
    finally:
        dist.destroy_process_group()


def run(checks: Sequence[Check], folder: Path) -> str:
    """Run all checks on two processes, until one fails; returns what has failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.spawn(_worker, (port, str(folder), checks), RANKS)  # type: ignore[no-untyped-call]
    except Exception:
        return traceback.format_exc()
    return ""


def passed(check: Check, folder: Path) -> bool:
    """Whether a check has passed on all ranks."""
    return all((folder / f"{check.__name__}.{rank}").exists() for rank in range(RANKS))


def same_on_all_ranks(value: Any) -> bool:
    values: list[Any] = [None] * RANKS
    dist.all_gather_object(values, value)
    return all(other == values[0] for other in values)


def refused(work: Callable[[], Any]) -> str:
    """The error that ``work`` ends with."""
    try:
        work()
    except EcoSpaError as error:
        return f"{type(error).__name__}: {error}"
    return ""
