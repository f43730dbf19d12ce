"""Resume: the state of a schedule as files, and what must be the same in the run that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.accumulator import FisherAccumulator
from ecospa_fx.errors import GradientError, LoadError, OptimizerError, PlanError, ScheduleError
from ecospa_fx.plan import CoupleLoss
from ecospa_fx.removal import Removal
from ecospa_fx.report import SparsifyReport
from ecospa_fx.target import Aim

FORMAT = 2
_KEYS = {"format", "config", "optimizers", "steps", "due", "begin", "aims", "reports", "removal", "fisher"}
_JSON, _TENSORS = "sparsity.json", "sparsity.safetensors"


def write_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a schedule's state into a folder: JSON, and safetensors for the Fisher sums."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v for k, v in state["fisher"].items() if isinstance(v, torch.Tensor)}
    rest = {k: v for k, v in state["fisher"].items() if k not in tensors}
    (folder / _JSON).write_text(json.dumps({**state, "fisher": rest}), encoding="utf-8")
    save_file(tensors, folder / _TENSORS)


def read_state(path: str | Path) -> dict[str, Any]:
    """The state that :func:`write_state` wrote.

    Raises:
        LoadError: a file is missing or damaged.
    """
    folder = Path(path)
    if not (folder / _JSON).is_file():
        raise LoadError(f"there is no {_JSON} in {path}: no SparsitySchedule was saved there")
    try:
        state: dict[str, Any] = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        state["fisher"].update(load_file(folder / _TENSORS))
    except Exception as error:
        raise LoadError(f"the schedule saved in {path} is damaged: {error}") from error
    return state


def optimizers_config(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Any]:
    """Class and parameters of each optimizer, JSON-ready."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [
        [type(o).__name__, [[names.get(id(p), "") for p in g["params"]] for g in o.param_groups]]
        for o in optimizers
    ]


def checked_state(
    state: Mapping[str, Any], config: Mapping[str, Any], optimizers: Sequence[Any]
) -> tuple[Removal, list[SparsifyReport], dict[str, Aim]]:
    """What the state removed, reported and aims at, once it fits the run that goes on.

    Args:
        state: of a schedule.
        config: of the schedule that goes on with it.
        optimizers: :func:`optimizers_config` of that run.

    Raises:
        ScheduleError: the state cannot be read, or is of another schedule.
        OptimizerError: it was taken with another optimizer.
    """
    missing = sorted(_KEYS - state.keys())
    if missing or state["format"] != FORMAT:
        what = f"it lacks {', '.join(missing)}" if missing else f"its format is {state['format']!r}"
        raise ScheduleError(f"this is no state of a SparsitySchedule of this version: {what}")
    theirs = state["config"]
    odd = [f"{k} was {theirs.get(k)!r}, now {v!r}" for k, v in config.items() if theirs.get(k) != v]
    if odd:
        raise ScheduleError("the state is of another schedule: " + "; ".join(odd))
    _check_optimizers(state["optimizers"], optimizers)
    try:
        aims = {name: Aim(*sizes) for name, sizes in state["aims"].items()}
        return Removal.from_dict(state["removal"]), [_report(r) for r in state["reports"]], aims
    except (PlanError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ScheduleError(f"the state cannot be read: {error}") from error


def read_sums(fisher: FisherAccumulator, sums: Mapping[str, Any]) -> None:
    """Let an accumulator go on from saved sums; from nothing, if there are none.

    Raises:
        ScheduleError: they are of another model.
    """
    fisher.reset()
    if not sums:
        return
    try:
        fisher.load_state_dict(sums)
    except (GradientError, KeyError) as error:
        raise ScheduleError(f"the state does not fit the model: {error}") from error


def _check_optimizers(theirs: Sequence[Any], ours: Sequence[Any]) -> None:
    if [kind for kind, _ in theirs] != [kind for kind, _ in ours]:
        listed = [", ".join(kind for kind, _ in config) for config in (theirs, ours)]
        raise OptimizerError(f"the state was taken with {listed[0]}, and the run goes on with {listed[1]}")
    if [list(map(list, groups)) for _, groups in theirs] != [groups for _, groups in ours]:
        raise OptimizerError(
            "the optimizer holds other parameters, or the same in another order, than the one with which "
            "the state was taken: build it in the same way"
        )


def _report(data: Mapping[str, Any]) -> SparsifyReport:
    losses = tuple(CoupleLoss(**loss) for loss in data["losses"])
    return SparsifyReport(
        **{**data, "losses": losses, "uneven": tuple(data["uneven"]), "slow": tuple(data.get("slow", ()))}
    )
