"""Ramp: when rounds come, and how far each of them goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ecospa_fx.errors import ScheduleError

Shape = Literal["cubic", "linear"]


@dataclass(frozen=True)
class Ramp:
    """Rounds every ``every`` steps between ``start`` and ``end``, and one at ``end``.

    Attributes:
        every: steps between two rounds.
        start: the step from which gradients count; the first round comes ``every`` steps later.
        end: the step of the last round.
        shape: ``"cubic"`` takes most at first (Zhu and Gupta 2017), ``"linear"`` the same in each round.

    Raises:
        ScheduleError: a value is out of its range; all culprits are listed.

    Example:
        >>> ramp = Ramp(every=10, start=20, end=45, shape="linear")
        >>> [step for step in range(60) if ramp.is_round(step)]
        [30, 40, 45]
        >>> [ramp.progress(step) for step in (20, 30, 40, 45)]
        [0.0, 0.4, 0.8, 1.0]
    """

    every: int
    start: int
    end: int
    shape: Shape | str = "cubic"

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ScheduleError("the schedule is malformed: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name, least in (("every", 1), ("start", 0), ("end", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                yield f"{name} is {value!r}, not a whole number from {least}"
                return
        if self.end < self.start:
            yield f"end ({self.end}) comes before start ({self.start})"
        if self.shape not in get_args(Shape):
            yield f"ramp is {self.shape!r}, not one of {', '.join(get_args(Shape))}"

    @property
    def first(self) -> int:
        """The step of the first round."""
        return min(self.start + self.every, self.end)

    def is_round(self, step: int) -> bool:
        """Whether a round follows ``step`` (counted from 1)."""
        on_beat = step > self.start and (step - self.start) % self.every == 0
        return step == self.end or (on_beat and step < self.end)

    def progress(self, step: int) -> float:
        """The part of the way that has been gone after ``step``, from 0 to 1."""
        if step >= self.end:
            return 1.0
        part = max(0.0, (step - self.start) / (self.end - self.start))
        return part if self.shape == "linear" else 1 - (1 - part) ** 3

    def reads(self, step: int, samples: int) -> bool:
        """Whether the gradients of ``step`` count: ``samples`` of each interval, evenly spread.

        The last step of an interval always does.
        """
        if not self.first - self.every < step <= self.end:
            return False
        place = (step - self.start - 1) % self.every
        last = step == self.end
        return last or (place + 1) * samples // self.every > place * samples // self.every

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
