"""Watch: the gradients with which an optimizer is going to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ecospa_fx.errors import ScheduleError
from ecospa_fx.scores import Score, ScoreFunction, find_score


class GradientWatch:
    """Calls ``read`` before each step that an optimizer really makes.

    Args:
        optimizer: the optimizer.
        read: gets what the gradients have been multiplied with (a fused optimizer unscales them itself).

    Attributes:
        optimizer: the optimizer.
        silent: a count of training steps, which the owner advances and each step of the optimizer clears.
    """

    def __init__(self, optimizer: Optimizer, read: Callable[[float], None]) -> None:
        self.optimizer = optimizer
        self.silent = 0
        self._read = read
        self._handle: RemovableHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it watches."""
        return self._handle is not None

    def open(self) -> None:
        """Begin to watch."""
        if self._handle is None:
            self._handle = self.optimizer.register_step_pre_hook(self._before)
        self.silent = 0

    def close(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.silent = 0
        if not _overflowed(optimizer):
            self._read(_scale(optimizer))


def check_reading(samples: int, score: str | Score | ScoreFunction) -> None:
    """Refuse what gradients alone cannot serve.

    Args:
        samples: how many steps of each interval are read.
        score: by which units are ranked.

    Raises:
        ScheduleError: one of them is malformed, or the score needs more than gradients.
        ScoreError: no score has this name.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ScheduleError(f"samples is {samples!r}, not a whole number from 1")
    if "activations" in find_score(score).needs:
        raise ScheduleError(f"score {score!r} needs calibration data, which a schedule does not have")


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is going to skip this step, as a GradScaler tells it."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _scale(optimizer: Optimizer) -> float:
    """By how much the gradients are too large: a fused optimizer unscales them itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
