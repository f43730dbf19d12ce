"""Distributed checkpoints: what a run needs to go on, on any number of ranks.

Tensors are written by ``torch.distributed.checkpoint``, each rank its own parts; what has been removed is a
JSON file beside them, and shapes follow from it before anything is read.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from ecospa_fx.agreement import ranks, together
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.distributed import unwrap
from ecospa_fx.errors import LoadError
from ecospa_fx.optim_state import inner_optimizers
from ecospa_fx.storage import load_removal, save_removal

if TYPE_CHECKING:
    from ecospa_fx.schedule import SparsitySchedule

_TENSORS, _SCHEDULE = "tensors", "schedule"


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    schedule: SparsitySchedule | None = None,
) -> None:
    """Write a checkpoint into a folder; all ranks have to call it.

    It appears under its name when it is complete: a process that dies meanwhile leaves what was there.

    Args:
        path: the folder, which all ranks see; one that exists is replaced.
        model: the compiled model, or what wraps it.
        optimizer: one or several optimizers.
        schedule: the schedule, if there is one.
    """
    folder, unfinished = Path(path), Path(f"{path}.unfinished")
    compiled, optimizers = unwrap(model), inner_optimizers(optimizer)

    def describe() -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_removal(unfinished, compiled.removal)
        if schedule is not None:
            schedule.save(unfinished / _SCHEDULE)

    _on_first("describing the checkpoint", describe)
    with _quiet():
        save(_state(compiled, optimizers), checkpoint_id=unfinished / _TENSORS, no_dist=ranks() == 1)
    _on_first("finishing the checkpoint", lambda: _moved(unfinished, folder))


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    schedule: SparsitySchedule | None = None,
) -> None:
    """Go on from :func:`save_checkpoint`; all ranks have to call it, of which there may be more or fewer.

    The model becomes as small as it was then; it may be dense or already smaller, whole or sharded.

    Args:
        path: the folder.
        model: a compiled model of the same architecture, or what wraps it.
        optimizer: one or several optimizers, built as those that were saved.
        schedule: a schedule with the same settings, if one was saved.

    Raises:
        LoadError: the checkpoint is missing, damaged, or of another model; nothing has changed then, unless
            tensors themselves are damaged.
        ScheduleError: it is of another schedule, or there was none.
    """
    folder = Path(path)
    folder = folder if folder.exists() else _former(folder)  # a process died between two renamings
    compiled, optimizers = unwrap(model), inner_optimizers(optimizer)
    removal = together("reading the checkpoint", lambda: _removal(folder, compiled, schedule is not None))
    if schedule is not None:
        schedule.load(folder / _SCHEDULE)
    elif removal != compiled.removal:
        compiled.carry_out(removal, optimizers)
    with (
        _unwatched(optimizers),
        _quiet(),
    ):  # an optimizer without state gets one by a step that changes nothing
        state = _state(compiled, optimizers)
        try:
            load(state, checkpoint_id=folder / _TENSORS, no_dist=ranks() == 1)
        except Exception as error:
            raise LoadError(f"the tensors in {folder} do not fit, or are damaged: {error}") from error
        set_state_dict(
            compiled, optimizers, model_state_dict=state["model"], optim_state_dict=state.get("optimizer", {})
        )


def _removal(folder: Path, compiled: CompiledModel, scheduled: bool) -> Any:
    removal = load_removal(folder, compiled.dense_shapes)
    if not (folder / _TENSORS).is_dir():
        raise LoadError(f"there is no {_TENSORS} in {folder}")
    if scheduled and not (folder / _SCHEDULE).is_dir():
        raise LoadError(f"no schedule was saved in {folder}")
    return removal


def _state(compiled: CompiledModel, optimizers: list[Optimizer]) -> dict[str, Any]:
    model, optimizer = get_state_dict(compiled, optimizers)
    return {"model": model, "optimizer": optimizer} if optimizers else {"model": model}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch says of each checkpoint that one process writes it alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _unwatched(optimizers: list[Optimizer]) -> Iterator[None]:
    """Inside, nothing looks on when an optimizer steps."""
    hooks = [(o, o._optimizer_step_pre_hooks, o._optimizer_step_post_hooks) for o in optimizers]
    try:
        for optimizer, _, _ in hooks:
            optimizer._optimizer_step_pre_hooks = OrderedDict()
            optimizer._optimizer_step_post_hooks = OrderedDict()
        yield
    finally:
        for optimizer, before, after in hooks:
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = before, after


def _on_first(what: str, work: Any) -> None:
    """Do it on the first rank; if it fails, it fails on all."""
    together(what, lambda: None if ranks() > 1 and dist.get_rank() else work())


def _moved(unfinished: Path, folder: Path) -> None:
    former = _former(folder)
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    unfinished.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _former(folder: Path) -> Path:
    return Path(f"{folder}.former")
