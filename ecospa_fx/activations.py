"""Activations: what calibration data say about units."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ecospa_fx.labels import Ids


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Energies seen in a forward pass over calibration data.

    Attributes:
        consumed: for each unit the sum over its input indices ``j`` of ``E[x_j²] ‖W[:, j]‖²``, where ``W`` is
            the weight that sums over the unit; shape ``[components]``, zero where there is none.
        left: energy ``E[q²]`` of the unit's dims on the left side of a product of two activations.
        right: energy ``E[k²]`` on its right side.
        gates: what the loss would feel of the unit (the score ``"gate"``); zero where it was not measured.
        absolute: the sum over its input indices of ``sqrt(E[x_j²]) ‖W[:, j]‖₁``.
        varied: the same of ``Var[x_j] ‖W[:, j]‖²``. Both are means over batches of each batch's own.
    """

    consumed: Ids
    left: Ids
    right: Ids
    gates: Ids = field(default_factory=lambda: np.zeros(0))
    absolute: Ids = field(default_factory=lambda: np.zeros(0))
    varied: Ids = field(default_factory=lambda: np.zeros(0))
