"""Sparse training with ``transformers.Trainer``: a callback."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import LoadError, PlanError, ScheduleError
from ecospa_fx.removal import Removal
from ecospa_fx.report import SparsifyReport
from ecospa_fx.resume import read_state
from ecospa_fx.schedule import SparsitySchedule
from ecospa_fx.twin import ALL_HOOKS, twin_of


class EcoSpaCallback(TrainerCallback):
    """Makes the model of a ``transformers.Trainer`` smaller while it trains.

    The Trainer gets the model itself. From the Trainer's construction on, a call of it runs the compiled
    graph, so that the Trainer, accelerate and the model's own ``generate`` and ``save_pretrained`` go on as
    ever. Sparsity is logged. Beside each checkpoint the state of the schedule is written.

    To go on from a checkpoint, tell the callback as well, because the model must have its size before the
    Trainer reads the weights::

        callback = EcoSpaCallback(target_ratio=0.5, every=200, end=4000, resume_from_checkpoint=path)
        Trainer(model, args, callbacks=[callback], ...).train(resume_from_checkpoint=path)

    Args:
        resume_from_checkpoint: what ``Trainer.train`` gets: a path, or True for the last one.
        check: as for :func:`ecospa_fx.compile`.
        schedule: arguments of :class:`SparsitySchedule`; one step is one of the optimizer.

    Attributes:
        compiled: the compiled model, once there is a Trainer: save it with ``callback.compiled.save(path)``.
        schedule: the schedule, once training has begun.
    """

    def __init__(
        self, *, resume_from_checkpoint: str | Path | bool | None = None, check: bool = True, **schedule: Any
    ) -> None:
        self.arguments = schedule
        self.resume_from_checkpoint = resume_from_checkpoint
        self.check = check
        self.compiled: CompiledModel | None = None
        self.schedule: SparsitySchedule | None = None
        self._model: nn.Module | None = None

    @property
    def reports(self) -> list[SparsifyReport]:
        """The reports of all rounds so far."""
        return self.schedule.reports if self.schedule else []

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile the model, and make it as small as the checkpoint is."""
        if model is None:
            raise ScheduleError("EcoSpaCallback needs a Trainer with a model; model_init makes several")
        if args.load_best_model_at_end:
            raise ScheduleError(
                "load_best_model_at_end may go back to a checkpoint of another size: leave it out, and take "
                "the checkpoint you want with resume_from_checkpoint"
            )
        self._model, self.compiled = model, compiled_inside(model, self.check)
        if path := self._checkpoint(args):
            try:
                self.compiled.carry_out(Removal.from_dict(read_state(path)["removal"]))
            except PlanError as error:
                raise ScheduleError(f"the checkpoint {path} does not fit the model: {error}") from error
        model.register_load_state_dict_pre_hook(_same_sizes)  # type: ignore[no-untyped-call]

    def _checkpoint(self, args: TrainingArguments) -> str | None:
        given = self.resume_from_checkpoint
        if given is True:
            given = get_last_checkpoint(args.output_dir)  # type: ignore[no-untyped-call]
            if given is None:
                raise LoadError(f"there is no checkpoint in {args.output_dir}")
        return str(given) if given else None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin the schedule with the Trainer's optimizer, or go on with it."""
        if self.compiled is None or self._model is None or optimizer is None:
            raise ScheduleError(
                "pass EcoSpaCallback to the Trainer's constructor: callbacks=[EcoSpaCallback(...)]"
            )
        if self.schedule is not None:
            self.schedule.close()
        self.schedule = SparsitySchedule(self.compiled, optimizer, **self.arguments)
        self.schedule.lockstep.wrappers += _parallel(self._model)
        path = self._checkpoint(args)
        if path and state.global_step:
            self.schedule.load(path)
        if self.schedule.steps != min(state.global_step, self.schedule.ramp.end):
            raise ScheduleError(
                f"the Trainer goes on at step {state.global_step}, the schedule at {self.schedule.steps}: "
                "pass the same resume_from_checkpoint to EcoSpaCallback and to Trainer.train"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the round that is due; evaluation and checkpoints of this step come after it."""
        if self.schedule is not None:
            self.schedule.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ``sparsity``, the part of all parameters that is gone, and ``parameters``."""
        if self.schedule is None or self._model is None:
            return
        mine = {
            "sparsity": self.schedule.sparsity,
            "parameters": sum(p.numel() for p in self._model.parameters()),
        }
        for entry in (logs, state.log_history[-1] if state.log_history else None):
            if entry is not None:
                entry.update(mine)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the schedule's state into the checkpoint."""
        if self.schedule is not None and args.should_save:
            self.schedule.save(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def compiled_inside(model: nn.Module, check: bool = True) -> CompiledModel:
    """Compile ``model``, and let its own calls run the compiled graph from now on.

    What is captured is a twin with the same parameters and submodules, whose ``forward`` stays.

    Args:
        model: keeps its class, attributes and hooks; only ``model.forward`` is replaced, and what inspects
            its signature sees the original one.
        check: as for :func:`ecospa_fx.compile`.

    Returns:
        The compiled model.
    """
    twin = twin_of(model, ALL_HOOKS)
    compiled = CompiledModel(twin, check=check)

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        twin.training = compiled.training = model.training
        return compiled.forward(*args, **kwargs)

    model.forward = forward
    return compiled


def _parallel(model: nn.Module) -> list[nn.Module]:
    """Every ``DistributedDataParallel`` around ``model``; the Trainer shows it to no callback."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    found = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
    return [ddp for ddp in found if ddp.module is model]


def _same_sizes(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Say what to do where weights of another round would not fit."""
    own = dict(module.named_parameters(prefix=prefix.rstrip(".")))
    odd = [
        f"{n} {list(v.shape)}, not {list(own[n].shape)}"
        for n, v in state_dict.items()
        if n in own and own[n].shape != v.shape
    ]
    if odd:
        raise ScheduleError(
            "the weights are of a model that has lost other units: "
            + "; ".join(odd[:4])
            + ". To resume, pass the checkpoint to the callback, too: "
            "EcoSpaCallback(..., resume_from_checkpoint=path)"
        )
