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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx.cut import ParameterCut
from ecospa_fx.equations import NormalEquations, best_damping, exact
from ecospa_fx.executable import Executable
from ecospa_fx.labels import Nature
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.program import Analysis
from ecospa_fx.repair import Fit, Repair
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


@dataclass(frozen=True)
class Consumer:
    """Where a graph sums over the inputs of a weight.

    Attributes:
        weight: name of a matrix.
        axis: its axis of inputs.
        bias: name of what is added, if that is a parameter.
        call: the node of the dense program.
        operand: name of the argument that holds the inputs.
        along: the axis of that argument which is summed over.
    """

    weight: str
    axis: int
    bias: str | None
    call: fx.Node
    operand: str
    along: int


def consumers(analysis: Analysis, names: Mapping[str, int]) -> Iterator[Consumer]:
    """Products of an activation with a whole matrix, in the order of the program.

    Args:
        analysis: the labels.
        names: matrix → its axis of inputs.
    """
    held = {n: analysis.labels[n][a] for n, a in names.items() if n in analysis.labels}
    labels = {n: ids for n, ids in held.items() if ids is not None and ids.ndim == 1}
    known = {int(ids[0]): n for n, ids in labels.items()}
    for node, call in analysis.calls.items():
        for join in call.joins:
            sides = [(name, axes, item(call.args, name)) for name, axes in join.operands]
            natures = [value.nature for _, _, value in sides]
            if join.gather or sorted(natures) != [Nature.WEIGHT, Nature.ACTIVATION]:
                continue
            at = natures.index(Nature.WEIGHT)
            (_, axes, value), (other, places, _) = sides[at], sides[1 - at]
            for array in value.arrays if value.rank == 2 else ():
                name = known.get(int(array.ids.flat[0]))
                (axis, *more) = array.axes
                if name is None or more or not np.array_equal(array.ids.ravel(), labels[name]):
                    continue
                if axes[axis] in places:
                    yield Consumer(name, names[name], _bias(analysis, node), node, other,
                                   places.index(axes[axis]))  # fmt: skip


def _bias(analysis: Analysis, node: fx.Node) -> str | None:
    """The parameter that a fused product adds to its result."""
    args = named_arguments(node, lambda n: n)
    added = args.get("bias", args.get("self") if "addmm" in str(node.target) else None)
    if not isinstance(added, fx.Node) or added.op != "get_attr":
        return None
    return str(added.target) if str(added.target) in analysis.program.parameters else None


def repair(
    trials: Sequence[Trial],
    parameters: Mapping[str, torch.Tensor],
    cuts: Mapping[str, ParameterCut],
    wanted: Mapping[str, int],
) -> Repair:
    """Fit every weight that loses inputs.

    All batches go through both graphs side by side, up to one weight after the other; besides their
    activations there the normal equations of that one weight are held.

    Args:
        trials: the batches; every fourth, or the second half of a few, is held out to choose ``λ``.
        parameters: those of the present model by name.
        cuts: what each parameter loses.
        wanted: weights that lose inputs → the axis.
    """
    return _Repairer(trials, parameters, cuts, wanted).run()


class _Repairer:
    def __init__(self, trials: Sequence[Trial], parameters: Mapping[str, torch.Tensor],
                 cuts: Mapping[str, ParameterCut], wanted: Mapping[str, int]) -> None:  # fmt: skip
        self.parameters, self.cuts = parameters, cuts
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
        return Repair(self.deltas, tuple(fits), self.skipped)

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
            if reads[place.weight] > 1:
                self.skipped[place.weight] = "it is read in more than one place"
                continue
            shared = place.bias is not None and reads[place.bias] > 1
            found[place.weight] = replace(place, bias=None) if shared else place
        return found

    def _fit(self, weight: str) -> Fit | None:
        """Fit one weight; None where its inputs do not lie side by side."""
        matrices = self._matrices(weight)
        equations = [NormalEquations(matrices[1].shape[1], len(matrices[0]), self._bias(weight) is not None)
                     for _ in range(2)]  # fmt: skip
        for number in range(len(self.trials)):
            rows = self._rows(number, weight)
            if [x.shape[1] for x in rows] != [w.shape[1] for w in matrices]:
                self.skipped[weight] = "heads keep different counts, so that its inputs are spread out"
                return None
            left = self._left(rows, matrices)
            split = round(min(max(0.75 * len(self.trials) - number, 0), 1) * len(left))
            equations[0].add(rows[1][:split], left[:split])
            equations[1].add(rows[1][split:], left[split:])
        return self._solved(weight, *equations)

    def _matrices(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight before and after, ``[outputs that stay, inputs]``."""
        axis, cut = self.wanted[weight], self.cuts[weight]
        stays = cut.axis_kept(1 - axis).nonzero()[:, 0]
        full = self.parameters[weight].detach()
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
            walk.until(node)
            x = item(named_arguments(node, walk.value), place.operand)
            found.append(x.detach().movedim(place.along, -1).flatten(0, -2))
        return found[0], found[1]

    @staticmethod
    def _left(
        rows: tuple[torch.Tensor, torch.Tensor], matrices: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """What the outputs lack: ``[rows, outputs]``."""
        wide = torch.promote_types(rows[0].dtype, torch.float32)
        with exact(rows[0]):
            return rows[0].to(wide) @ matrices[0].T.to(wide) - rows[1].to(wide) @ matrices[1].T.to(wide)

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


def _standing_for(graph: fx.Graph, dense: fx.Node) -> fx.Node:
    found: fx.Node = next(
        n for n in reversed(graph.nodes) if n.meta.get("dense") is dense and n.target is dense.target
    )
    return found


def _same(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor
