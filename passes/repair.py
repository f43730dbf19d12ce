r"""Repair: fit the weights that read removed units to what these carried. Nothing is changed.

For a weight ``W`` that sums over units, with inputs ``X`` before the removal and ``X'`` after it, the change
is

.. math:: \min_D \lVert X' (W_{kept} + D) - X W \rVert^2
          + \lambda \sum_j \lVert X'_j \rVert^2 \lVert D_j \rVert^2

so that the weight keeps its old values where the data say nothing. Weights are fitted in the order of the
graph, and each sees the inputs that those before it leave, so that errors do not add up. (Closed forms for
what is left after pruning go back to Optimal Brain Surgeon.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ecospa_fx.cut import ParameterCut
from ecospa_fx.equations import NormalEquations, best_damping, exact
from ecospa_fx.executable import Executable
from ecospa_fx.passes.consumers import Consumer, consumers
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.program import Analysis
from ecospa_fx.repair import Fit, Repair, RepairSettings
from ecospa_fx.rules.call import item
from ecospa_fx.walk import Walk


@dataclass(frozen=True, eq=False)
class Trial:
    """One batch, and the graphs that run on it.

    Attributes:
        analysis: the dense program and its labels.
        before: the present graph.
        after: the graph after the removal.
        inputs: flat inputs of both.
    """

    analysis: Analysis
    before: Executable
    after: Executable
    inputs: list[Any]


def repair(
    trials: Sequence[Trial],
    parameters: Mapping[str, torch.Tensor],
    cuts: Mapping[str, ParameterCut],
    wanted: Mapping[str, int],
    settings: RepairSettings | None = None,
) -> Repair:
    """Fit every weight that loses inputs.

    All batches go through both graphs side by side, up to one weight after the other; besides their
    activations there the normal equations of that one weight are held.

    Args:
        trials: the batches; every fourth, or the second half of a few, is held out to choose ``λ``.
        parameters: those of the present model by name.
        cuts: what each parameter loses.
        wanted: weights that lose inputs → the axis.
        settings: what is fitted to what.
    """
    return _Repairer(trials, parameters, cuts, wanted, settings or RepairSettings()).run()


class _Repairer:
    def __init__(self, trials: Sequence[Trial], parameters: Mapping[str, torch.Tensor],
                 cuts: Mapping[str, ParameterCut], wanted: Mapping[str, int],
                 settings: RepairSettings) -> None:  # fmt: skip
        self.parameters, self.cuts, self.settings = parameters, cuts, settings
        self.trials, self.wanted = trials, wanted
        self.deltas: dict[str, torch.Tensor] = {}
        self.skipped = dict.fromkeys(wanted, "it meets no activations in a plain product")
        self.places = {id(t.analysis): self._places(t.analysis) for t in trials}
        self.walks = [
            (Walk(t.before, t.inputs, _same), Walk(t.after, t.inputs, self._repaired)) for t in trials
        ]

    def run(self) -> Repair:
        fits = []
        for weight in list(self.places[id(self.trials[0].analysis)]):
            if any(weight not in places for places in self.places.values()):
                self.skipped[weight] = "it is not read in every kind of call"
            elif fit := self._fit(weight):
                fits.append(fit)
                del self.skipped[weight]
        return Repair(self.deltas, tuple(fits), {n: r for n, r in self.skipped.items() if self._loses(n)})

    def _loses(self, weight: str) -> bool:
        """Whether a weight sums over fewer inputs."""
        axis, cut = self.wanted[weight], self.cuts.get(weight)
        return cut is not None and cut.old_shape[axis] != cut.new_shape[axis]

    def _repaired(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor after the removal, as far as it has been repaired."""
        if name in self.cuts:
            tensor = self.cuts[name].apply(tensor.detach())
        return tensor + self.deltas[name].to(tensor) if name in self.deltas else tensor

    def _places(self, analysis: Analysis) -> dict[str, Consumer]:
        """The one place where each weight is read; what is read twice stays as it is."""
        reads: dict[str, int] = {}
        for node in analysis.program.graph.nodes:
            if node.op == "get_attr":
                reads[str(node.target)] = reads.get(str(node.target), 0) + len(node.users)
        found = {}
        for place in consumers(analysis, self.wanted):
            if place.beside is None and not self._loses(place.weight):
                continue
            if reads[place.weight] > 1:
                self.skipped[place.weight] = "it is read in more than one place"
                continue
            shared = place.bias is not None and reads[place.bias] > 1
            found[place.weight] = replace(place, bias=None) if shared else place
        return found

    def _fit(self, weight: str) -> Fit | None:
        """Fit one weight; None where there is nothing to fit, or its inputs do not lie side by side."""
        matrices = self._matrices(weight)
        equations = [NormalEquations(matrices[1].shape[1], len(matrices[0]), self._bias(weight) is not None)
                     for _ in range(2)]  # fmt: skip
        for number in range(len(self.trials)):
            rows = self._rows(number, weight)
            if [x.shape[1] for x in rows] != [w.shape[1] for w in matrices]:
                self.skipped[weight] = "heads keep different counts, so that its inputs are spread out"
                return None
            left = self._left(rows, matrices, self._beside(number, weight))
            if number == 0 and not self._loses(weight) and not left.any():
                return None  # nothing before it has changed
            split = round(min(max(0.75 * len(self.trials) - number, 0), 1) * len(left))
            equations[0].add(rows[1][:split], left[:split])
            equations[1].add(rows[1][split:], left[split:])
        return self._solved(weight, *equations)

    def _matrices(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight before and after, ``[outputs that stay, inputs]``."""
        axis, cut = self.wanted[weight], self.cuts.get(weight)
        full = self.parameters[weight].detach()
        if cut is None:
            return full.movedim(axis, 1), full.movedim(axis, 1)
        stays = cut.axis_kept(1 - axis).nonzero()[:, 0]
        return full.movedim(axis, 1)[stays.to(full.device)], cut.apply(full).movedim(axis, 1)

    def _bias(self, weight: str) -> str | None:
        """The bias, if every kind of call adds the same one."""
        found = {places[weight].bias for places in self.places.values()}
        return found.pop() if len(found) == 1 else None

    def _rows(self, number: int, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs of a weight in one batch, before and after: ``[rows, inputs]``."""
        trial = self.trials[number]
        place = self.places[id(trial.analysis)][weight]
        found = []
        for executable, walk in zip((trial.before, trial.after), self.walks[number], strict=True):
            node = _standing_for(executable.module.graph, place.call)
            assert node is not None, place.call
            walk.until(node)
            x = item(named_arguments(node, walk.value), place.operand)
            found.append(x.detach().movedim(place.along, -1).flatten(0, -2))
        return found[0], found[1]

    def _beside(self, number: int, weight: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the product is added to, in both graphs, if that counts and is known there."""
        trial = self.trials[number]
        dense = self.places[id(trial.analysis)][weight].beside
        if dense is None or self.settings.target == "product":
            return None
        found = []
        for executable, walk in zip((trial.before, trial.after), self.walks[number], strict=True):
            node = _standing_for(executable.module.graph, dense)
            if node is None or not walk.knows(node):
                return None
            found.append(walk.value(node).detach().flatten(0, -2))
        return found[0], found[1]

    @staticmethod
    def _left(
        rows: tuple[torch.Tensor, torch.Tensor],
        matrices: tuple[torch.Tensor, torch.Tensor],
        beside: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """What the outputs lack: ``[rows, outputs]``."""
        wide = torch.promote_types(rows[0].dtype, torch.float32)
        with exact(rows[0]):
            full, small = (x.to(wide) @ w.T.to(wide) for x, w in zip(rows, matrices, strict=True))
        if beside is None or any(x.shape != full.shape for x in beside):
            return full - small
        return full - small + (beside[0] - beside[1])

    def _solved(self, weight: str, fitted: NormalEquations, held_out: NormalEquations) -> Fit:
        damping, error = best_damping(fitted, held_out)
        whole, bias = fitted + held_out, self._bias(weight)
        if damping is not None:
            change, offset = whole.solve(damping)
            self.deltas[weight] = change.movedim(0, self.wanted[weight])
            if bias is not None:
                self.deltas[bias] = offset
        lost = self.parameters[weight].shape[self.wanted[weight]] - whole.inputs
        return Fit(weight, bias, lost, whole.rows, damping, error)


def _standing_for(graph: fx.Graph, dense: fx.Node) -> fx.Node | None:
    made = (n for n in reversed(graph.nodes) if n.meta.get("dense") is dense and n.target is dense.target)
    return next(made, None)


def _same(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor
