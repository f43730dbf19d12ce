"""Normal equations: least squares over many batches, from sums that are added up batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

DAMPINGS = (1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0)
"""What is tried on held-out rows, as fractions of the energy of an input."""


@dataclass(eq=False)
class NormalEquations:
    """The sums from which ``min ‖X D - R‖² + λ Σ_j ‖X_j‖² ‖D_j‖²`` is solved; no row of ``X`` is kept.

    Each input ``j`` is damped by its own energy: in pretrained models the energies of units differ by many
    orders of magnitude, and one number for all would hold the weak ones and leave the strong ones free.

    Args:
        inputs: width of ``X``.
        outputs: width of ``R``.
        centred: fit an offset as well, which is not damped.

    Attributes:
        rows: number of rows seen.
        energy: ``‖R‖²``.
    """

    inputs: int
    outputs: int
    centred: bool = False
    rows: int = 0
    energy: float = 0.0
    _gram: torch.Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)
    _cross: torch.Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)
    _sum_x: torch.Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)
    _sum_r: torch.Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)

    def add(self, x: torch.Tensor, r: torch.Tensor) -> None:
        """Add rows.

        Args:
            x: shape ``[rows, inputs]``.
            r: shape ``[rows, outputs]``.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        x, r = x.to(wide), r.to(wide)
        with exact(x):
            self._gram = self._gram.to(x) + x.T @ x
            self._cross = self._cross.to(x) + x.T @ r
        self._sum_x, self._sum_r = self._sum_x.to(x) + x.sum(0), self._sum_r.to(x) + r.sum(0)
        self.energy += float(r.double().square().sum())
        self.rows += len(x)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """The equations of all rows of both."""
        both = NormalEquations(self.inputs, self.outputs, self.centred)
        both.rows, both.energy = self.rows + other.rows, self.energy + other.energy
        for name in ("_gram", "_cross", "_sum_x", "_sum_r"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def solve(self, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The minimum for ``λ = damping``.

        Returns:
            ``D`` of shape ``[inputs, outputs]`` and the offset, shape ``[outputs]`` (zero unless centred);
            float64.

        Raises:
            torch.linalg.LinAlgError: the sums are not finite, or singular without damping.
        """
        gram, cross = self._gram.double(), self._cross.double()
        mean_x, mean_r = self._sum_x.double() / self.rows, self._sum_r.double() / self.rows
        if self.centred:
            gram = gram - self.rows * mean_x[:, None] * mean_x
            cross = cross - self.rows * mean_x[:, None] * mean_r
        scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()
        gram = scale[:, None] * gram * scale
        gram.diagonal().add_(damping)
        change = torch.cholesky_solve(scale[:, None] * cross, torch.linalg.cholesky(gram)) * scale[:, None]
        return change, mean_r - mean_x @ change if self.centred else torch.zeros_like(mean_r)

    def error(self, change: torch.Tensor, offset: torch.Tensor) -> float:
        """``‖X D + 1 b - R‖²`` on the rows seen."""
        gram, cross = self._gram.double(), self._cross.double()
        sum_x, sum_r = self._sum_x.double(), self._sum_r.double()
        linear = (change * (gram @ change - 2 * cross)).sum()
        shift = offset @ (self.rows * offset + 2 * (sum_x @ change) - 2 * sum_r)
        return max(self.energy + float(linear + shift), 0.0)


def exact(tensor: torch.Tensor) -> torch.autocast:
    """Products in the dtype of their operands, whatever autocast says around it."""
    return torch.autocast(tensor.device.type, enabled=False)


def best_damping(
    fitted: NormalEquations, held_out: NormalEquations, tried: tuple[float, ...] = DAMPINGS
) -> tuple[float | None, float]:
    """The damping whose solution on some rows fits others best.

    Args:
        fitted: equations that are solved.
        held_out: equations of other rows, on which the solutions are compared.
        tried: the candidates, ascending; what fits others best is searched for downhill, as little damping
            follows the noise and much of it changes nothing.

    Returns:
        The damping, None where no change at all fits best; and the error that is left on the held-out rows,
        relative to that of no change.
    """
    if not held_out.energy:
        return None, 1.0

    @cache
    def error(place: int) -> float:
        return held_out.error(*fitted.solve(tried[place])) / held_out.energy

    best = _valley(error, len(tried))
    return (tried[best], error(best)) if error(best) < 1 else (None, 1.0)


def _valley(height: Callable[[int], float], places: int) -> int:
    """The lowest of some places in a row, from the middle one downhill."""
    at, before = places // 2, -1
    while at != before:
        before = at
        at = min((i for i in (at, at - 1, at + 1) if 0 <= i < places), key=height)
    return at
