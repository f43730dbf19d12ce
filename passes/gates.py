"""Gates: what the loss would feel of each unit, token by token. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx.executable import Executable
from ecospa_fx.labels import Ids
from ecospa_fx.passes.calibrate import Probe
from ecospa_fx.program import Analysis


def gates(
    analysis: Analysis,
    dead: Ids,
    executable: Executable,
    inputs: list[Any],
    loss: Callable[[Any], torch.Tensor],
) -> dict[str, Ids]:
    """One batch's energies, and the second-order estimate that the score ``"gate"`` is.

    Multiply unit ``u`` by a gate ``1 - z`` where it is summed over, for token ``t`` alone. The derivative of
    the loss is ``a_tu = Σ_i x_ti ∂L/∂x_ti`` over the entries of the unit. With tokens taken as independent,
    the loss changes by ``½ E[a²]`` if the unit goes everywhere.

    Args:
        analysis: the dense program and its labels.
        dead: dead labels, bool, shape ``[labels]``.
        executable: the present graph, without calls of blocks.
        inputs: flat inputs.
        loss: from the graph's flat outputs to a number, a mean over tokens.

    Returns:
        Sums over the components of ``analysis``, by name, as :class:`Calibration` adds them up.
    """
    probe = _Gates(analysis, dead, executable.module)
    with torch.enable_grad():
        probe.finish(loss(probe.run(*executable.arguments(inputs))))
    return probe.sums


class _Gates(Probe):
    """Remembers every activation that is summed over, for its gradient."""

    def __init__(self, analysis: Analysis, dead: Ids, module: fx.GraphModule) -> None:
        super().__init__(analysis, dead, module)
        self.seen: list[tuple[Ids, torch.Tensor, list[int]]] = []

    def saw(self, components: Ids, tensor: torch.Tensor, axes: list[int]) -> None:
        """Keep the activation."""
        if tensor.is_floating_point():
            self.seen.append((components, tensor if tensor.requires_grad else tensor.requires_grad_(), axes))

    def finish(self, loss: torch.Tensor) -> None:
        """Add up ``½ E[a²]`` of every unit."""
        if not self.seen:
            return
        found = torch.autograd.grad(loss, [x for _, x, _ in self.seen], allow_unused=True)
        for (components, x, axes), gradient in zip(self.seen, found, strict=True):
            if gradient is not None:
                self._add_gates(components, _rows(x.detach() * gradient, axes))

    def _add_gates(self, components: Ids, rows: torch.Tensor) -> None:
        units, at = np.unique(components, return_inverse=True)
        place = torch.from_numpy(at.ravel()).to(rows.device)
        felt = rows.new_zeros(len(rows), len(units)).index_add_(1, place, rows)
        self.sums["gates"][units] += len(rows) / 2 * felt.square().sum(0).double().cpu().numpy()


def _rows(tensor: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """A row for each index of the other axes: ``[rows, entries over axes]``."""
    last = tensor.movedim(axes, list(range(-len(axes), 0)))
    return last.flatten(-len(axes)).flatten(0, -2).float()
