"""The schedule: sparse training in two lines beside the learning rate's schedule."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.accumulator import FisherAccumulator
from ecospa_fx.agreement import agree, all_sum, ranks, together
from ecospa_fx.change import Change
from ecospa_fx.course import Course
from ecospa_fx.errors import EcoSpaError, ScheduleError
from ecospa_fx.lockstep import Lockstep, changes_to
from ecospa_fx.plan import Plan
from ecospa_fx.ramp import Ramp, Shape
from ecospa_fx.removal import Removal
from ecospa_fx.report import SparsifyReport
from ecospa_fx.resume import FORMAT, checked_state, optimizers_config, read_state, read_sums, write_state
from ecospa_fx.scores import Score, ScoreFunction, find_score
from ecospa_fx.target import Aim, Target
from ecospa_fx.watch import GradientWatch, check_reading


class SparsitySchedule:
    """Makes a compiled model smaller in rounds while it trains.

    Call :meth:`step` once after each ``optimizer.step()``. Between rounds Fisher information is taken from
    the gradients with which the optimizer steps: averaged over micro-batches, unscaled, clipped, and only in
    steps that really happen. After the round at ``end`` the model has its size, and the schedule does nothing
    any more.

    Under ``torch.distributed`` every rank makes the same rounds: Fisher information is added up, plans are
    compared, and what fails on one rank fails on all, with nothing cut anywhere.

    Args:
        compiled: the compiled model, or what wraps it (``DistributedDataParallel``, ``torch.compile``).
        optimizer: one optimizer, or several; of several the last to step is to be the last in the list.
        target_ratio: the fraction of the dense model's coupled parameters that is gone in the end; or one for
            each kind of couples, ``{"ffn": 0.5, "qk": 0.3}``, and other kinds stay whole.
        target_params: the whole model's size in the end, instead.
        top_k: Algorithm 1, see :class:`PlanSettings`.
        threshold: Algorithm 1, see :class:`PlanSettings`.
        every: steps between two rounds.
        start: the step from which gradients count; the first round comes ``every`` steps later.
        end: the step of the last round.
        ramp: ``"cubic"`` takes most at first, ``"linear"`` the same in each round.
        score: by which units are ranked; ``"fisher"`` by default.
        samples: how many steps of each interval are read, evenly spread.
        followers: copies of the compiled model that shrink with it, such as an ``AveragedModel``.
        group: the ranks; all of them by default.
        settings: further fields of :class:`PlanSettings`, such as ``limits``, ``kinds`` or ``round_to``.

    Raises:
        ScheduleError: arguments are malformed, or ranks disagree.
        PlanError: the target is out of reach; the message says the most. A model that has not been called
            yet is checked in its first step, before the optimizer changes anything.
        OptimizerError: the optimizer does not hold what is to shrink.
        RewriteError: parameters are sharded over ranks.

    Example:
        >>> import ecospa_fx
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> compiled = ecospa_fx.compile(model, args=(torch.randn(5, 8),))
        >>> optimizer = torch.optim.AdamW(compiled.parameters())
        >>> schedule = SparsitySchedule(compiled, optimizer, target_ratio=0.5, every=2, end=6)
        >>> for _ in range(8):
        ...     compiled(torch.randn(5, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     _ = schedule.step()
        >>> [report.losses[0].after for report in schedule.reports]
        [20, 16, 16]
    """

    def __init__(
        self,
        compiled: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        *,
        target_ratio: float | Mapping[str, float] | None = None,
        target_params: int | None = None,
        top_k: float = 0.3,
        threshold: float = 0.9,
        every: int,
        start: int = 0,
        end: int,
        ramp: Shape | str = "cubic",
        score: str | Score | ScoreFunction | None = None,
        samples: int = 32,
        followers: Iterable[nn.Module] = (),
        group: dist.ProcessGroup | None = None,
        **settings: Any,
    ) -> None:
        settings = {"top_k": top_k, "threshold": threshold, **settings}
        self.settings, self.ramp = settings, Ramp(every, start, end, ramp)
        self.course = Course(Target(target_ratio, target_params), self.ramp, settings)
        self.score = "fisher" if score is None else score
        self.samples = samples
        check_reading(samples, self.score)
        self.lockstep = Lockstep(compiled, optimizer, followers, group)
        self.compiled = self.lockstep.compiled
        self.steps, self._due = 0, False
        self.reports: list[SparsifyReport] = []
        needs = find_score(self.score).needs
        units, elements = "gradients" in needs or callable(self.score), "elements" in needs
        self.fisher = FisherAccumulator(self.compiled, units, self.course.settings.kinds, elements)
        if any(True for _ in self.compiled.signatures):
            self._open()
        self._watch = GradientWatch(self.lockstep.optimizers[-1], self._read_gradients)
        self._watch.open()

    def _open(self) -> None:
        """What needs the model's graph: sizes, whether the target is in reach, and who trains what."""
        together("opening the schedule", self._measure, self.lockstep.group)
        agree("the schedule", [self._config(), self.course.to_dict()], self.lockstep.group)

    def _measure(self) -> None:
        self.lockstep.check_trained(self.course.settings.kinds, self.lockstep.optimizers)
        self.course.measure(self.compiled)

    @property
    def last(self) -> SparsifyReport | None:
        """The report of the last round; None before the first."""
        return self.reports[-1] if self.reports else None

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return self.steps >= self.ramp.end and not self._due

    @property
    def sparsity(self) -> float:
        """The fraction of the dense model's parameters that is gone."""
        shapes, parameters = self.compiled.dense_shapes, self.compiled.named_parameters()
        dense = sum(int(torch.Size(shapes[n]).numel()) for n, _ in parameters)
        return 1 - sum(p.numel() for p in self.compiled.parameters()) / dense

    def close(self) -> None:
        """Stop watching the optimizer; done by itself after the last round."""
        self._watch.close()

    def _read_gradients(self, scale: float) -> None:
        """Those with which the optimizer is going to step, where they count."""
        if not self.course.aims:
            self._open()
        if self._due or self.ramp.reads(self.steps + 1, self.samples):
            self.fisher.update(scale=scale)

    def step(self) -> SparsifyReport | None:
        """Count one training step, and make the round that is due after it.

        A round without gradients, because a loss scaler skipped every step, waits for the next one.

        Returns:
            The round's report; None in all other steps.

        Raises:
            EcoSpaError: the round failed. Model, optimizer and followers are then as they were.
        """
        if self.done:
            return None
        self.steps += 1
        self._watch.silent += 1
        self._due |= self.ramp.is_round(self.steps)
        report = None
        if self._due and self._has_gradients():
            report = self._round()
            self._due = False
        if self.steps >= self.ramp.end and not self._due:
            self.close()
        return report

    def _has_gradients(self) -> bool:
        """Whether all ranks have seen some since the last round.

        Raises:
            ScheduleError: the optimizer has not stepped for so long that it cannot be the right one.
        """
        patience = max(32, self.ramp.every)
        if not all_sum(np.array([self.fisher.samples == 0], np.float64), self.lockstep.group).any():
            return True
        if self._watch.silent >= patience:
            raise ScheduleError(
                f"{type(self._watch.optimizer).__name__} has not stepped in the last {self._watch.silent} "
                "steps of the schedule. If you replaced it, call schedule.watch(optimizer) with the new one"
            )
        return False

    def watch(self, optimizer: Optimizer | Iterable[Optimizer]) -> None:
        """Go on with another optimizer.

        Raises:
            OptimizerError: it does not hold what is to shrink; the schedule goes on with the former one.
        """
        optimizers = self.lockstep.checked(optimizer)
        if self.course.aims:
            self.lockstep.check_trained(self.course.settings.kinds, optimizers)
        self.lockstep.optimizers = optimizers
        was_open = self._watch.is_open
        self._watch.close()
        self._watch = GradientWatch(optimizers[-1], self._read_gradients)
        if was_open:
            self._watch.open()

    def size_at(self, step: int) -> int:
        """How many parameters the whole model is to have after ``step``, once it has been captured."""
        return self.course.size_at(step)

    def _round(self) -> SparsifyReport:
        started, group = time.perf_counter(), self.lockstep.group
        together("reading the gradients", lambda: self.fisher.statistics, group)
        if ranks(group) > 1:
            self.fisher.reduce(group)
        chosen, changes = together("planning a round", self._planned, group)
        agree("what goes in this round", [self.steps, chosen.removal.to_dict()], group)
        self.lockstep.commit(changes)
        report = SparsifyReport.of(chosen, time.perf_counter() - started)
        self.reports.append(report)
        return report

    def _planned(self) -> tuple[Plan, list[Change]]:
        found = self.compiled.plan(
            self.fisher, score=self.score, **self.course.asked(self.compiled, self.steps), **self.settings
        )
        return found, self.lockstep.changes(found.removal)

    def _config(self) -> dict[str, Any]:
        """What must be the same in a run that goes on, JSON-ready."""
        score = self.score if isinstance(self.score, str) else getattr(self.score, "__name__", "")
        return {**self.course.config(), "samples": self.samples, "score": score}

    def state_dict(self) -> dict[str, Any]:
        """All it takes to go on: JSON-ready but for the tensors under ``"fisher"``.

        What has been removed is part of it.
        """
        return {
            "format": FORMAT,
            "config": self._config(),
            "optimizers": optimizers_config(self.compiled, self.lockstep.optimizers),
            "steps": self.steps,
            "due": self._due,
            **self.course.to_dict(),
            "reports": [report.to_dict() for report in self.reports],
            "removal": self.compiled.removal.to_dict(),
            "fisher": self.fisher.state_dict() if self.fisher.samples else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the model becomes as small as it was then.

        Call it first; after it ``compiled.load_state_dict`` and ``optimizer.load_state_dict`` find the shapes
        that they need. The model may be dense, or already smaller.

        Raises:
            ScheduleError: the state is of another schedule, or its plan does not fit the model.
            OptimizerError: it was taken with another optimizer.
            EcoSpaError: whatever else does not fit; nothing has changed in any case.
        """
        group = self.lockstep.group
        removal, reports, aims = together("reading the state", lambda: self._checked(state), group)
        changes = together("reading the state", lambda: changes_to(self.lockstep, removal), group)
        self.lockstep.commit(changes)
        try:
            together("reading the Fisher sums", lambda: read_sums(self.fisher, state["fisher"]), group)
        except EcoSpaError:
            self.lockstep.rollback(changes)
            self.fisher.reset()
            raise
        self.steps, self._due, self.reports = int(state["steps"]), bool(state["due"]), reports
        self.course.begin, self.course.aims = int(state["begin"]), aims
        self._watch.close()
        if not self.done:
            self._watch.open()

    def _checked(self, state: Mapping[str, Any]) -> tuple[Removal, list[SparsifyReport], dict[str, Aim]]:
        return checked_state(
            state, self._config(), optimizers_config(self.compiled, self.lockstep.optimizers)
        )

    def save(self, path: str | Path) -> None:
        """Write the state into a folder, beside other files of a checkpoint: JSON and safetensors."""
        write_state(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Go on from :meth:`save`.

        Raises:
            LoadError: a file is missing or damaged.
            EcoSpaError: see :meth:`load_state_dict`.
        """
        self.load_state_dict(read_state(path))
