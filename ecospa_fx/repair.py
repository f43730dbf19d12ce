"""A repair: what the weights that read removed units gain, so that they do without them; as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ecospa_fx.errors import RepairError


@dataclass(frozen=True)
class RepairSettings:
    """What a repair fits to what.

    Attributes:
        target: ``"sum"``: what the weight's product makes together with the activation to which it is added
            (a residual stream), so that it also makes up for what weights before it have left; where there is
            no such sum, as ``"product"``: what the weight itself has put out.
        every: weights that sum over units and end in such a sum are fitted also where they lose none, to make
            up for what comes before them.
    """

    target: Literal["product", "sum"] = "sum"
    every: bool = False

    def __post_init__(self) -> None:
        if self.target not in ("product", "sum"):
            raise RepairError(f"target is {self.target!r}, not 'product' or 'sum'")


@dataclass(frozen=True)
class Fit:
    """How well one weight makes up for the units that it lost.

    Attributes:
        parameter: name of the weight.
        bias: name of the bias that takes up the means, None where the weight has none.
        lost: inputs that it lost.
        tokens: rows of calibration data.
        damping: chosen on held-out rows, relative to the mean energy of an input; None where leaving the
            weight as it is fits best.
        error: what is left of the output error on the held-out rows, as a fraction of the squared error
            without repair.
    """

    parameter: str
    bias: str | None
    lost: int
    tokens: int
    damping: float | None
    error: float


@dataclass(frozen=True, eq=False)
class Repair:
    """Changes of weights and biases that follow a removal.

    Attributes:
        deltas: what is added, by parameter name, in the shape after the removal.
        fits: every weight that was fitted, in the order of the graph.
        skipped: weights that lost inputs and are not repaired → the reason.
    """

    deltas: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fits: tuple[Fit, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def check(self, parameters: Mapping[str, nn.Parameter], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what cannot be added once the parameters have ``shapes``.

        Raises:
            RepairError: a parameter is unknown, of another shape, or its change is not finite.
        """
        wrong = [n for n, d in self.deltas.items() if n not in parameters or tuple(d.shape) != shapes[n]]
        if wrong:
            raise RepairError(f"the repair does not fit {', '.join(map(repr, wrong[:8]))}: make it anew")
        odd = [n for n, d in self.deltas.items() if not bool(torch.isfinite(d).all())]
        if odd:
            raise RepairError(f"the repair of {', '.join(map(repr, odd[:8]))} is not finite")

    @torch.no_grad()
    def apply(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """Add the changes, in place; the parameters stay the same objects.

        Returns:
            Their values before.
        """
        before = {name: parameters[name].detach().clone() for name in self.deltas}
        for name, delta in self.deltas.items():
            parameters[name].add_(delta.to(parameters[name]))
        return before

    def to_dict(self) -> dict[str, Any]:
        """What was fitted and what was not, JSON-ready; without the changes themselves."""
        return {"fits": [vars(fit) for fit in self.fits], "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        left = sorted(fit.error for fit in self.fits)
        middle = f", {left[len(left) // 2]:.0%} of the output error left (median)" if left else ""
        others = f"; {len(self.skipped)} left as they are" if self.skipped else ""
        return f"{len(self.fits)} weights repaired{middle}{others}"
