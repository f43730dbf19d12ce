"""Agreement between ranks: sums, and steps that all of them take or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ecospa_fx.errors import ScheduleError
from ecospa_fx.labels import Ids

T = TypeVar("T")


def ranks(group: dist.ProcessGroup | None = None) -> int:
    """How many ranks there are; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def all_sum(values: Ids, group: dist.ProcessGroup | None = None) -> Ids:
    """The sum over ranks, bit for bit the same on each: every rank adds up all parts in the same order."""
    if ranks(group) == 1:
        return values
    backend = str(dist.get_backend(group))
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    own = torch.from_numpy(values).to(device)
    sizes = _gather(len(values), group)
    if len(set(sizes)) > 1:
        raise ScheduleError(f"ranks measure different models: {sizes} numbers")
    parts = [torch.empty_like(own) for _ in range(ranks(group))]
    dist.all_gather(parts, own, group=group)
    return np.asarray(torch.stack(parts).sum(0).cpu().numpy())


def together(what: str, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Do ``work`` on every rank; if it fails on one of them it fails on all.

    Args:
        what: names the work in the error.
        work: no collective may be called in it.
        group: the ranks; all of them by default.

    Raises:
        Exception: its own error on the rank that failed.
        ScheduleError: on the other ranks, with what failed where.
    """
    if ranks(group) == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = _gather(None if failure is None else f"{type(failure).__name__}: {failure}", group)
    if failure is not None:
        raise failure
    if any(failures):
        listed = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(failures) if text)
        raise ScheduleError(f"{what} failed on another rank, so nothing was done here: {listed}")
    return result


def agree(what: str, value: Any, group: dist.ProcessGroup | None = None) -> None:
    """Check that all ranks hold the same JSON-ready value.

    Raises:
        ScheduleError: they do not; on every rank alike.
    """
    if ranks(group) == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
    digests = _gather(digest, group)
    if len(set(digests)) > 1:
        kinds = {d: [r for r, other in enumerate(digests) if other == d] for d in dict.fromkeys(digests)}
        sides = " against ".join("ranks " + ", ".join(map(str, members)) for members in kinds.values())
        raise ScheduleError(
            f"the ranks disagree on {what}: {sides}. Nothing was cut. Models and settings must be the same "
            "on all ranks: start from the same weights (DistributedDataParallel sends those of rank 0), "
            "settings and checkpoint"
        )


class Attempt:
    """Work that may fail on one rank between collectives, in which that rank takes part nevertheless."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Do it, unless something has failed before; a failure is kept."""
        if self.failure is None:
            try:
                return work()
            except Exception as error:
                self.failure = error
        return torch.empty(0)

    def check(self) -> None:
        """Raise what has failed."""
        if self.failure is not None:
            raise self.failure


def _gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    values: list[Any] = [None] * ranks(group)
    dist.all_gather_object(values, value, group=group)
    return values
