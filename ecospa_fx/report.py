"""The report of a removal: what the model had, what it has, and what each couple lost."""

from __future__ import annotations

import io
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ecospa_fx.repair import Repair
from ecospa_fx.slowness import slow_shapes, uneven

if TYPE_CHECKING:
    from ecospa_fx.plan import CoupleLoss, Plan


@dataclass(frozen=True)
class SparsifyReport:
    """What ``sparsify`` did.

    Attributes:
        params_before: parameters of the whole model before.
        params_after: the same after.
        coupled_before: parameters held by the couples in play before.
        coupled_after: the same after.
        losses: what each couple lost.
        seconds: how long it took, from gradients to the smaller model.
        repair: which weights were fitted to make up for what went, without their values; None without repair.
        uneven: parameters of which a width was a multiple of 8 in the dense model, has changed, and is none
            now; empty where ``round_to`` asks for such multiples.
        slow: what may keep the smaller model from being a faster one, each with what to do about it.
    """

    params_before: int
    params_after: int
    coupled_before: int
    coupled_after: int
    losses: tuple[CoupleLoss, ...]
    seconds: float
    repair: Repair | None = None
    uneven: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, seconds: float, repair: Repair | None = None) -> SparsifyReport:
        """The report of a plan that was carried out."""
        odd = uneven(plan)
        return cls(
            plan.params_before,
            plan.params_after,
            plan.coupled_before,
            plan.coupled_after,
            plan.losses,
            seconds,
            repair and replace(repair, deltas={}),
            odd,
            slow_shapes(plan, odd),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        repair = self.repair.to_dict() if self.repair else None
        losses = [asdict(loss) for loss in self.losses]
        return {
            **asdict(self),
            "losses": losses,
            "repair": repair,
            "uneven": list(self.uneven),
            "slow": list(self.slow),
        }

    def __str__(self) -> str:
        repair = f"\n{self.repair}" if self.repair else ""
        notes = "".join(f"\n{note}" for note in self.slow)
        return f"{loss_table(self)}{repair}{notes}\nin {self.seconds:.2f} s"


def loss_table(result: Plan | SparsifyReport) -> str:
    """Counts before and after, then a line for each family of couples.

    Couples that differ only in numbers (layers, heads) share a line, with the range of what they keep.
    """
    lines = [
        _change("parameters", result.params_before, result.params_after),
        _change("held by couples", result.coupled_before, result.coupled_after),
    ]
    return "\n".join(lines) + ("\n" + _families(result.losses) if result.losses else "")


def _change(what: str, before: int, after: int) -> str:
    share = 100 * (before - after) / before if before else 0.0
    return f"{what:<16}{before:>16,} -> {after:>16,}  (-{share:.2f} %)"


def _families(losses: tuple[CoupleLoss, ...]) -> str:
    groups: dict[str, list[CoupleLoss]] = {}
    for loss in losses:
        groups.setdefault(re.sub(r"\d+(?=[.\]]|$)", "*", loss.couple), []).append(loss)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("couples", no_wrap=True)
    for name in ("count", "units before", "units after", "lost", "kept in each"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, members in groups.items():
        before, after = sum(m.before for m in members), sum(m.after for m in members)
        share = f"{100 * (before - after) / before:.1f} %" if before else "-"
        table.add_row(name, str(len(members)), f"{before:,}", f"{after:,}", share, _range(members))
    return _plain(table)


def _range(members: list[CoupleLoss]) -> str:
    least, most = min(m.after for m in members), max(m.after for m in members)
    of = max(m.before for m in members)
    return f"{least}..{most} of {of}" if least != most else f"{most} of {of}"


def _plain(table: Table) -> str:
    """The table as aligned text, without colour, as wide as it needs to be."""
    sink = io.StringIO()
    Console(file=sink, width=300, color_system=None, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().rstrip().splitlines())
