"""The schedule: sparse training in two lines beside the learning rate's schedule."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ecospa_fx.agreement import agree, all_sum, check_whole, ranks, together
from ecospa_fx.census import Census
from ecospa_fx.change import Change, prepare
from ecospa_fx.distributed import rebuild, unwrap
from ecospa_fx.errors import EcoSpaError, GradientError, LoadError, OptimizerError, PlanError, ScheduleError
from ecospa_fx.fisher import FisherAccumulator
from ecospa_fx.optim_state import StateRules, inner_optimizer
from ecospa_fx.passes.choose import check_couples, unread
from ecospa_fx.passes.plan import plan
from ecospa_fx.passes.remap import check_held
from ecospa_fx.plan import CoupleLoss, Plan, PlanSettings
from ecospa_fx.ramp import Ramp, Shape
from ecospa_fx.removal import Removal
from ecospa_fx.report import SparsifyReport
from ecospa_fx.scores import Score, ScoreFunction, find_score

FORMAT = 1
_JSON, _TENSORS = "sparsity.json", "sparsity.safetensors"


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
        target_ratio: the fraction of the dense model's coupled parameters that is gone in the end.
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
        target_ratio: float | None = None,
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
        self.compiled = unwrap(compiled)
        self.optimizers = [inner_optimizer(o) for o in _listed(optimizer)]
        self.target_ratio, self.target_params = target_ratio, target_params
        self.ramp = Ramp(every, start, end, ramp)
        self.score = "fisher" if score is None else score
        self.samples = samples
        self.settings = {"top_k": top_k, "threshold": threshold, **settings}
        self.followers = list(followers)
        self.group = group
        self.steps = 0
        self.reports: list[SparsifyReport] = []
        self.wrappers = [compiled]  # what is rebuilt after a round
        self._chosen = self._checked()
        self._begin = self._final = -1  # sizes, once the model has been captured
        self._due = False
        self._silent = 0  # steps since the optimizer was last seen
        units = "gradients" in find_score(self.score).needs or callable(self.score)
        self.fisher = FisherAccumulator(self.compiled, units, self._chosen.kinds)
        self._handle: RemovableHandle | None = None
        if any(True for _ in self.compiled.signatures):
            self._open()
        self._handle = self.optimizers[-1].register_step_pre_hook(self._watch)

    def _checked(self) -> PlanSettings:
        """The settings, and what can be said about the arguments without a graph."""
        if (self.target_ratio is None) == (self.target_params is None):
            given = "both" if self.target_ratio is not None else "neither"
            raise ScheduleError(f"give either target_ratio or target_params, and not {given}")
        ratio, size = self.target_ratio, self.target_params
        if ratio is not None and (isinstance(ratio, bool) or not 0 <= ratio < 1):
            raise ScheduleError(f"target_ratio is {ratio!r}, not in [0, 1)")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ScheduleError(f"target_params is {size!r}, not a whole number above zero")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise ScheduleError(f"samples is {self.samples!r}, not a whole number from 1")
        if "activations" in find_score(self.score).needs:
            raise ScheduleError(
                f"score {self.score!r} needs calibration data, which a schedule does not have"
            )
        if not self.optimizers:
            raise OptimizerError("no optimizer was given")
        for follower in self.followers:
            unwrap(follower)
        chosen = PlanSettings.of(self.settings)
        check_whole(dict(self.compiled.named_parameters()))
        check_held(dict(self.compiled.named_parameters()), (), self.optimizers)
        for optimizer in self.optimizers:
            StateRules(optimizer)  # refuses those that cannot follow
        return chosen

    def _open(self) -> None:
        """What needs the model's graph: sizes, whether the target is in reach, and who trains what."""
        together("opening the schedule", self._measure, self.group)
        agree("the schedule", [self._config(), self._begin, self._final], self.group)

    def _measure(self) -> None:
        compiled, chosen = self.compiled, self._chosen
        graph, partition = compiled.couplings, compiled.analysis.partition
        check_couples(graph, chosen.kinds)
        begin, final = _size(compiled), self.target_params
        outside = unread(graph, compiled.named_parameters())
        if final is None:
            census = Census(graph, partition, Removal(), chosen.kinds)
            gone = ceil(float(self.target_ratio or 0) * census.coupled(census.dead) - 1e-6)
            final = census.params(census.dead) + outside - gone
        aim: dict[str, Any] = {"target_params": min(final, begin)}
        if self.target_ratio is not None and not compiled.removal.removed:
            aim = {"ratio": self.target_ratio}
        alike = np.zeros(len(graph.couple_of))
        uniform = replace(chosen, allocation="uniform")
        plan(graph, partition, compiled.removal, alike, settings=uniform, outside=outside, **aim)
        held = {w.parameter for c in graph.couples if c.kind in chosen.kinds for w in c.weights}
        parameters = dict(compiled.named_parameters(remove_duplicate=False))
        check_held(parameters, {id(parameters[n]) for n in held}, self.optimizers)
        self._begin = begin if self._begin < 0 else self._begin
        self._final = final

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
        return 1 - _size(self.compiled) / dense

    def close(self) -> None:
        """Stop watching the optimizer; done by itself after the last round."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _watch(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before the optimizer steps: read the gradients with which it is going to."""
        self._silent = 0
        if self._final < 0:
            self._open()
        step = self.steps + 1
        if not (self._due or self.ramp.reads(step, self.samples)) or _overflowed(optimizer):
            return
        self.fisher.update(scale=_scale(optimizer))

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
        self._silent += 1
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
        if not all_sum(np.array([self.fisher.samples == 0], np.float64), self.group).any():
            return True
        if self._silent >= patience:
            raise ScheduleError(
                f"{type(self.optimizers[-1]).__name__} has not stepped in the last {self._silent} steps of "
                "the schedule. If you replaced it, call schedule.watch(optimizer) with the new one"
            )
        return False

    def watch(self, optimizer: Optimizer | Iterable[Optimizer]) -> None:
        """Go on with another optimizer.

        Raises:
            OptimizerError: it does not hold what is to shrink; the schedule goes on with the former one.
        """
        former, self.optimizers = self.optimizers, [inner_optimizer(o) for o in _listed(optimizer)]
        try:
            self._checked()
            if self._final >= 0:
                self._measure()
        except EcoSpaError:
            self.optimizers = former
            raise
        self._silent = 0
        if self._handle is not None:
            self.close()
            self._handle = self.optimizers[-1].register_step_pre_hook(self._watch)

    def size_at(self, step: int) -> int:
        """How many parameters the whole model is to have after ``step``, once it has been captured."""
        return self._begin - round(self.ramp.progress(step) * (self._begin - self._final))

    def _round(self) -> SparsifyReport:
        started = time.perf_counter()
        together("reading the gradients", lambda: self.fisher.statistics, self.group)
        if ranks(self.group) > 1:
            self.fisher.reduce(self.group)
        chosen, changes = together("planning a round", self._planned, self.group)
        agree("what goes in this round", [self.steps, chosen.removal.to_dict()], self.group)
        self._commit(changes)
        report = SparsifyReport.of(chosen, time.perf_counter() - started)
        self.reports.append(report)
        return report

    def _planned(self) -> tuple[Plan, list[Change]]:
        target = min(self.size_at(self.steps), _size(self.compiled))
        found = self.compiled.plan(self.fisher, target_params=target, score=self.score, **self.settings)
        return found, self._changes(found.removal)

    def _changes(self, removal: Removal) -> list[Change]:
        """One for the model and one for each follower; all are checked, and none is made yet."""
        return [
            prepare(self.compiled, removal, self.optimizers),
            *(prepare(unwrap(follower), removal) for follower in self.followers),
        ]

    def _commit(self, changes: Sequence[Change]) -> None:
        """Make all changes on all ranks, or none."""
        made: list[Change] = []

        def work() -> None:
            for change in changes:
                change.commit()
                made.append(change)

        try:
            together("cutting the parameters", work, self.group)
        except BaseException:
            for change in reversed(made):
                change.rollback()
            raise
        self._rebuild()

    def _rebuild(self) -> None:
        for wrapper in self.wrappers:
            rebuild(wrapper)

    def _config(self) -> dict[str, Any]:
        """What must be the same in a run that goes on, JSON-ready."""
        score = self.score if isinstance(self.score, str) else getattr(self.score, "__name__", "")
        return {
            "target_ratio": self.target_ratio,
            "target_params": self.target_params,
            **self.ramp.to_dict(),
            "samples": self.samples,
            "score": score,
            "settings": self._chosen.to_dict(),
        }

    def _optimizer_config(self) -> list[Any]:
        names = {id(p): n for n, p in self.compiled.named_parameters()}
        return [
            [type(o).__name__, [[names.get(id(p), "") for p in g["params"]] for g in o.param_groups]]
            for o in self.optimizers
        ]

    def state_dict(self) -> dict[str, Any]:
        """All it takes to go on: JSON-ready but for the tensors under ``"fisher"``.

        What has been removed is part of it.
        """
        return {
            "format": FORMAT,
            "config": self._config(),
            "optimizers": self._optimizer_config(),
            "steps": self.steps,
            "due": self._due,
            "sizes": [self._begin, self._final],
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
        changes, reports = together("reading the state", lambda: self._read(state), self.group)
        self._commit(changes)
        try:
            together("reading the Fisher sums", lambda: self._read_fisher(state["fisher"]), self.group)
        except EcoSpaError:
            for change in reversed(changes):
                change.rollback()
            self._rebuild()
            self.fisher.reset()
            raise
        self.steps, self._due, self.reports = int(state["steps"]), bool(state["due"]), reports
        self._begin, self._final = state["sizes"]
        self._silent = 0
        if self.done:
            self.close()
        elif self._handle is None:
            self._handle = self.optimizers[-1].register_step_pre_hook(self._watch)

    def _read_fisher(self, sums: Mapping[str, Any]) -> None:
        self.fisher.reset()
        if not sums:
            return
        try:
            self.fisher.load_state_dict(sums)
        except (GradientError, KeyError) as error:
            raise ScheduleError(f"the state does not fit the model: {error}") from error

    def _read(self, state: Mapping[str, Any]) -> tuple[list[Change], list[SparsifyReport]]:
        missing = sorted(_KEYS - state.keys())
        if missing or state["format"] != FORMAT:
            what = f"it lacks {', '.join(missing)}" if missing else f"its format is {state['format']!r}"
            raise ScheduleError(f"this is no state of a SparsitySchedule of this version: {what}")
        theirs, ours = state["config"], self._config()
        odd = [f"{k} was {theirs.get(k)!r}, now {ours[k]!r}" for k in ours if theirs.get(k) != ours[k]]
        if odd:
            raise ScheduleError("the state is of another schedule: " + "; ".join(odd))
        self._check_optimizers(state["optimizers"])
        try:
            removal, reports = Removal.from_dict(state["removal"]), [_report(r) for r in state["reports"]]
        except (PlanError, TypeError, KeyError, ValueError) as error:
            raise ScheduleError(f"the state cannot be read: {error}") from error
        return self._changes_to(removal), reports

    def _check_optimizers(self, theirs: Sequence[Any]) -> None:
        ours = self._optimizer_config()
        if [kind for kind, _ in theirs] != [kind for kind, _ in ours]:
            listed = [", ".join(kind for kind, _ in config) for config in (theirs, ours)]
            raise OptimizerError(
                f"the state was taken with {listed[0]}, and the run goes on with {listed[1]}"
            )
        if [list(map(list, groups)) for _, groups in theirs] != [groups for _, groups in ours]:
            raise OptimizerError(
                "the optimizer holds other parameters, or the same in another order, than the one with which "
                "the state was taken: build it in the same way"
            )

    def _changes_to(self, removal: Removal) -> list[Change]:
        """As `_changes`, from whatever is gone already."""
        try:
            return self._changes(removal)
        except EcoSpaError as error:
            hint = ""
            if isinstance(error, OptimizerError):
                hint = ". Load the schedule's state before the optimizer's"
            raise ScheduleError(f"what the state removed does not fit the model: {error}{hint}") from error

    def save(self, path: str | Path) -> None:
        """Write the state into a folder, beside other files of a checkpoint: JSON and safetensors."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict()
        fisher = dict(state["fisher"])
        state["fisher"] = {k: fisher.pop(k) for k in list(fisher) if not isinstance(fisher[k], torch.Tensor)}
        (folder / _JSON).write_text(json.dumps(state), encoding="utf-8")
        save_file(fisher, folder / _TENSORS)

    def load(self, path: str | Path) -> None:
        """Go on from :meth:`save`.

        Raises:
            LoadError: a file is missing or damaged.
            EcoSpaError: see :meth:`load_state_dict`.
        """
        self.load_state_dict(read_state(path))


def read_state(path: str | Path) -> dict[str, Any]:
    """The state that :meth:`SparsitySchedule.save` wrote.

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


_KEYS = {"format", "config", "optimizers", "steps", "due", "sizes", "reports", "removal", "fisher"}


def _listed(optimizer: Optimizer | Iterable[Optimizer]) -> Iterator[Optimizer]:
    for one in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
        if not isinstance(one, Optimizer):
            raise OptimizerError(f"expected a torch.optim.Optimizer, got {type(one).__name__}")
        yield one


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is going to skip this step, as a GradScaler tells it."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _scale(optimizer: Optimizer) -> float:
    """By how much the gradients are too large: a fused optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _report(data: Mapping[str, Any]) -> SparsifyReport:
    losses = tuple(CoupleLoss(**loss) for loss in data["losses"])
    return SparsifyReport(**{**data, "losses": losses})
