"""Target: what a schedule is to reach, and the sizes on the way there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ecospa_fx.errors import ScheduleError

WHOLE = ""
"""The name of the aim that counts the whole model."""


@dataclass(frozen=True)
class Target:
    """What is to be gone in the end.

    Attributes:
        ratio: the fraction of the dense model's coupled parameters, or one for each kind of couples; a kind
            that is not in the mapping stays whole.
        params: the whole model's size instead.

    Raises:
        ScheduleError: neither or both were given, or a value is out of its range; all culprits are listed.

    Example:
        >>> Target({"ffn": 0.5, "qk": 0.25}).kinds(("qk", "vo", "ffn"))
        ('ffn', 'qk')
    """

    ratio: float | Mapping[str, float] | None = None
    params: int | None = None

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ScheduleError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if (self.ratio is None) == (self.params is None):
            given = "both" if self.ratio is not None else "neither"
            yield f"give either target_ratio or target_params, and not {given}"
        if isinstance(self.ratio, Mapping):
            yield from _odd_kinds(self.ratio)
        elif self.ratio is not None and not _share(self.ratio):
            yield f"target_ratio is {self.ratio!r}, not in [0, 1)"
        size = self.params
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            yield f"target_params is {size!r}, not a whole number above zero"

    def kinds(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """The kinds of couples in play."""
        return tuple(self.ratio) if isinstance(self.ratio, Mapping) else default

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, by the names of the schedule's arguments."""
        ratio = dict(self.ratio) if isinstance(self.ratio, Mapping) else self.ratio
        return {"target_ratio": ratio, "target_params": self.params}


def _odd_kinds(ratios: Mapping[str, float]) -> Iterator[str]:
    if not ratios:
        yield "target_ratio names no kind of couples, such as 'ffn'"
    for kind, ratio in ratios.items():
        if not isinstance(kind, str) or not kind:
            yield f"target_ratio names {kind!r}, which is no kind of couples"
        if not _share(ratio):
            yield f"target_ratio of {kind!r} is {ratio!r}, not in [0, 1)"


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


@dataclass(frozen=True)
class Aim:
    """A number of parameters that goes down.

    Attributes:
        begin: how many there are at the start.
        final: how many are left in the end.

    Example:
        >>> Aim(100, 60).at(0.5)
        80
    """

    begin: int
    final: int

    def at(self, progress: float) -> int:
        """How many there are to be after this part of the way, from 0 to 1."""
        return self.begin - round(progress * (self.begin - self.final))
