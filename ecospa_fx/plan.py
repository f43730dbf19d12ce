"""The plan: what is to go, as data that can be printed, compared, saved and applied later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ecospa_fx.coupling import DEFAULT_KINDS
from ecospa_fx.errors import PlanError
from ecospa_fx.removal import Removal

Allocation = Literal["ecospa", "uniform", "global"]
Layout = Literal["free", "native"]
Heads = Literal["uniform", "ragged"]
FORMAT = 1


@dataclass(frozen=True)
class PlanSettings:
    """How the target is shared out among couples.

    Attributes:
        allocation: ``"ecospa"`` is the paper's Algorithm 1; ``"uniform"`` takes the same fraction everywhere;
            ``"global"`` ranks all units by score per parameter, so that scores must compare between couples.
        top_k: Algorithm 1: the fraction K of couples, those of least importance, that lose units in one turn.
        threshold: Algorithm 1: the share θ of its score that a couple keeps in one turn.
        kinds: kinds of couples in play.
        min_width: least number of rows that every head, and every other couple, keeps of each segment.
        round_to: widths that change become multiples of this many rows, where that is possible at all.
        limits: the most of the dense units that may go, over all rounds, by kind, couple name or pattern
            (``{"qk": 0.5, "model.layers.0.*": 0.2}``); where several fit, the strictest counts.
        remove_heads: whole heads (KV groups) may go.
        heads: ``"uniform"`` keeps equally many rows in all heads of a layer; with ``"ragged"`` each loses as
            many as its importance says, as in the paper. Parameters are as small either way, while
            computation takes the width of the widest head of the layer.
        layout: with ``"native"`` what is left can be said in the config of the model's own class: couples
            of which one field of it speaks go on being equally wide (or in proportion) in all layers, those
            of which none speaks stay whole, and of attention only whole heads go (with ``remove_heads``),
            equally many in every layer.

    Raises:
        PlanError: a value is out of its range; all culprits are listed.
    """

    allocation: Allocation | str = "ecospa"
    top_k: float = 0.3
    threshold: float = 0.9
    kinds: tuple[str, ...] = DEFAULT_KINDS
    min_width: int = 1
    round_to: int = 1
    limits: Mapping[str, float] = field(default_factory=dict)
    remove_heads: bool = False
    heads: Heads | str = "uniform"
    layout: Layout | str = "free"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "limits", dict(self.limits))
        if problems := list(self._problems()):
            raise PlanError("settings out of range: " + "; ".join(problems))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PlanSettings:
        """Settings by name, as callers pass them on.

        Raises:
            PlanError: one is unknown, or out of its range.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            raise PlanError(
                f"unknown setting: {error}; there are {', '.join(cls.__annotations__)}"
            ) from error

    def _problems(self) -> Iterator[str]:
        if self.allocation not in get_args(Allocation):
            yield f"allocation is {self.allocation!r}, not one of {', '.join(get_args(Allocation))}"
        if not _within(self.top_k, 0, 1) or self.top_k == 0:
            yield f"top_k is {self.top_k!r}, not in (0, 1]"
        if not _within(self.threshold, 0, 1) or self.threshold == 1:
            yield f"threshold is {self.threshold!r}, not in [0, 1)"
        if not self.kinds or any(not isinstance(k, str) for k in self.kinds):
            yield f"kinds is {self.kinds!r}, not a list of names"
        for name in ("min_width", "round_to"):
            if not _whole(getattr(self, name)):
                yield f"{name} is {getattr(self, name)!r}, not a whole number from 1"
        for pattern, most in self.limits.items():
            if not _within(most, 0, 1):
                yield f"limit {pattern!r} is {most!r}, not in [0, 1]"
        if self.heads not in get_args(Heads):
            yield f"heads is {self.heads!r}, not one of {', '.join(get_args(Heads))}"
        if self.layout not in get_args(Layout):
            yield f"layout is {self.layout!r}, not one of {', '.join(get_args(Layout))}"
        if self.layout == "native" and self.heads == "ragged":
            yield "no config says heads='ragged', which layout='native' is for"
        if self.remove_heads not in (True, False):
            yield f"remove_heads is {self.remove_heads!r}, not a bool"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "kinds": list(self.kinds)}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class CoupleLoss:
    """What one couple loses.

    Attributes:
        couple: its name.
        kind: its kind.
        dense: units it had in the dense model.
        before: units before this plan.
        after: units after it.
    """

    couple: str
    kind: str
    dense: int
    before: int
    after: int

    @property
    def lost(self) -> int:
        """Units that go."""
        return self.before - self.after


@dataclass(frozen=True, eq=False)
class Plan:
    """What goes, over all rounds so far, and what that does to each couple.

    Two plans are equal if their data are.

    Attributes:
        removal: all removed indices in terms of the dense parameters, former rounds included.
        losses: every couple in play, in the order of the model.
        params_before: parameters of the whole model before.
        params_after: the same after.
        coupled_before: parameters held by the couples in play before.
        coupled_after: the same after.
        settings: how the target was shared out.
        score: name of the score that ranked the units.

    Example:
        >>> plan = Plan(Removal(), (), 10, 10, 6, 6)
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    removal: Removal
    losses: tuple[CoupleLoss, ...]
    params_before: int
    params_after: int
    coupled_before: int
    coupled_after: int
    settings: PlanSettings = field(default_factory=PlanSettings)
    score: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _COUNTS},
            "score": self.score,
            "settings": self.settings.to_dict(),
            "losses": [asdict(loss) for loss in self.losses],
            "removal": self.removal.to_dict(),
        }

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of :meth:`to_json`.

        Raises:
            PlanError: the text is no plan of this format; the message names the first culprit.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The inverse of :meth:`to_dict`, with the checks of :meth:`from_json`."""
        _keys("the plan", data, {"format", *_COUNTS, "score", "settings", "losses", "removal"})
        if data["format"] != FORMAT:
            raise PlanError(f"the plan has format {data['format']!r}; this version reads {FORMAT}")
        counts = {name: _count(f"the plan's {name}", data[name]) for name in _COUNTS}
        losses = tuple(_loss(item) for item in _typed("the plan's losses", data["losses"], list))
        score = _typed("the plan's score", data["score"], str)
        plan = cls(
            _removal(data["removal"]), losses, **counts, settings=_settings(data["settings"]), score=score
        )
        plan._check()
        return plan

    def _check(self) -> None:
        if self.params_before - self.params_after != self.coupled_before - self.coupled_after:
            raise PlanError("the plan's parameter counts contradict each other")
        for loss in self.losses:
            if not loss.dense >= loss.before >= loss.after:
                raise PlanError(
                    f"the plan lets {loss.couple!r} grow: {loss.dense}, {loss.before}, {loss.after}"
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        from ecospa_fx.report import loss_table

        how = f"{self.settings.allocation} allocation" + (f" by {self.score}" if self.score else "")
        return f"Plan: {how}\n{loss_table(self)}"


_COUNTS = ("params_before", "params_after", "coupled_before", "coupled_after")


def _typed(what: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{what} is {value!r:.80}, not of type {kind.__name__}")
    return value


def _count(what: str, value: Any) -> int:
    if _typed(what, value, int) < 0:
        raise PlanError(f"{what} is {value}, below zero")
    return int(value)


def _keys(what: str, data: Any, expected: set[str]) -> None:
    _typed(what, data, dict)
    odd = [f"lacks {k!r}" for k in sorted(expected - data.keys())]
    odd += [f"has an unknown entry {k!r}" for k in sorted(data.keys() - expected)]
    if odd:
        raise PlanError(f"{what} {', '.join(odd)}")


def _loss(data: Any) -> CoupleLoss:
    _keys("a loss of the plan", data, {f.name for f in fields(CoupleLoss)})
    texts = {k: _typed(f"{k} of a loss", data[k], str) for k in ("couple", "kind")}
    counts = (_count(f"{k} of {data['couple']!r}", data[k]) for k in ("dense", "before", "after"))
    return CoupleLoss(texts["couple"], texts["kind"], *counts)


def _settings(data: Any) -> PlanSettings:
    _keys("the plan's settings", data, {f.name for f in fields(PlanSettings)})
    _typed("the plan's kinds", data["kinds"], list)
    _typed("the plan's limits", data["limits"], dict)
    return PlanSettings(**data)


def _removal(data: Any) -> Removal:
    _typed("the plan's removal", data, dict)
    _keys("the plan's removal", {"stacked": {}, **data}, {"shapes", "removed", "stacked"})
    for name in data:
        _typed(f"the removal's {name}", data[name], dict)
    try:
        return Removal.from_dict(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"the plan's removal cannot be read: {error}") from error
