"""Calibrate: run the present graph on data, and measure the energy of every unit where it is consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.executable import Executable
from ecospa_fx.labels import Ids, LabelArray, Nature, Tag, Value
from ecospa_fx.layout import Layout, layout_of
from ecospa_fx.passes.expert_energy import consumed_by_expert
from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import Call, Join, item

SUMS = ("consumed", "left", "right", "gates", "absolute", "varied")


class Calibration:
    """Sums of energies over calibration batches, for one state of one model.

    Args:
        graph: the couples, to whose components the result refers.
    """

    def __init__(self, graph: CouplingGraph) -> None:
        self.graph = graph
        self.batches = 0
        self.sums = {name: np.zeros(len(graph.couple_of)) for name in SUMS}

    def run(self, analysis: Analysis, dead: Ids, executable: Executable, inputs: list[Any]) -> None:
        """Add one batch; nothing of the graph's values is kept.

        Args:
            analysis: the dense program and its labels.
            dead: dead labels, bool, shape ``[labels]``.
            executable: the present graph, as ``rewrite`` made it for ``dead``.
            inputs: flat inputs.
        """
        probe = Probe(analysis, dead, executable.module)
        with torch.no_grad():
            probe.run(*executable.arguments(inputs))
        self.add(analysis, probe.sums)

    def add(self, analysis: Analysis, sums: Mapping[str, Ids]) -> None:
        """Add one batch's sums, which stand over the components of ``analysis``."""
        same = self._components(analysis)
        for name, values in sums.items():
            known = same >= 0
            self.sums[name] += np.bincount(same[known], values[known], minlength=len(self.sums[name]))
        self.batches += 1

    def _components(self, analysis: Analysis) -> Ids:
        """For each component of ``analysis`` the one of ``graph`` that holds the same parameter entries."""
        same = np.full(analysis.partition.num_components, -1)
        for axis in self.graph.axes:
            ids = analysis.labels.get(axis.parameter, ())[axis.axis : axis.axis + 1]
            for own in ids:
                if own is not None:
                    same[analysis.partition.component[own.ravel()]] = axis.components
        return same

    def result(self) -> ActivationStatistics:
        """The mean over batches."""
        return ActivationStatistics(**{k: v / max(self.batches, 1) for k, v in self.sums.items()})


class Probe(fx.Interpreter):
    """Runs a graph and looks at the operands of every contraction."""

    def __init__(self, analysis: Analysis, dead: Ids, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.analysis = analysis
        self.dead, self.standing = dead, analysis.space.stacks.standing(dead)
        self.sums = {name: np.zeros(analysis.partition.num_components) for name in SUMS}
        self.picks: dict[fx.Node, Any] = dict.fromkeys(analysis.picked.values())

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and measure if it contracts units."""
        with torch.no_grad():
            self._look(n, n.meta.get("dense"))
        result = super().run_node(n)
        if n.meta.get("dense") in self.picks:
            self.picks[n.meta["dense"]] = result
        return result

    def _look(self, n: fx.Node, dense: fx.Node | None) -> None:
        call = self.analysis.calls.get(dense) if dense is not None and dense.target is n.target else None
        if call is not None:
            values = named_arguments(n, self.env.__getitem__)
            if "scaled_dot_product" in call.target:
                self._dot(call, values, ("query", "key"))
            for join in call.joins:
                self._measure(call, join, values)
            if dense is not None and dense in self.analysis.picked:
                self._by_expert(call, values, self.picks[self.analysis.picked[dense]])

    def _by_expert(self, call: Call, values: Mapping[str, Any], picks: torch.Tensor) -> None:
        found = consumed_by_expert(self.analysis, self.dead, call, values, picks)
        if found is not None:
            components, energy = (array.ravel() for array in found)
            self.sums["consumed"] += np.bincount(components, energy, minlength=len(self.sums["consumed"]))

    def _measure(self, call: Call, join: Join, values: Mapping[str, Any]) -> None:
        if len(join.operands) != 2 or join.gather:
            return
        names = [name for name, _ in join.operands]
        natures = [item(call.args, name).nature for name in names]
        if natures == [Nature.ACTIVATION, Nature.ACTIVATION] and "scaled_dot_product" not in call.target:
            self._dot(call, values, (names[0], names[1]))
        elif Nature.WEIGHT in natures and Nature.ACTIVATION in natures:
            weight = natures.index(Nature.WEIGHT)
            self._consume(call, join, values, weight)

    def _dot(self, call: Call, values: Mapping[str, Any], names: tuple[str, str]) -> None:
        """Energies of both sides of a product of two activations, on labels that it sums over."""
        for side, name in zip(("left", "right"), names, strict=True):
            value, tensor = item(call.args, name), item(values, name)
            for array in value.arrays:
                if self._tagged(array, Tag.DOT):
                    layout = self._layout(value)
                    if tuple(tensor.shape[a] for a in array.axes) == tuple(
                        layout.shape[a] for a in array.axes
                    ):
                        self._add(side, array, layout, _energy(tensor, array.axes))
                        if side == "left":
                            self.saw(self._components(array, layout), tensor, sorted(array.axes))

    def _consume(self, call: Call, join: Join, values: Mapping[str, Any], weight: int) -> None:
        """``E[x_j²] ‖W[:, j]‖²`` for every index at which an activation meets a weight that sums over it."""
        (name, axes), (other, other_axes) = join.operands[weight], join.operands[1 - weight]
        value, w, x = item(call.args, name), item(values, name), item(values, other)
        for array in value.arrays:
            if not self._tagged(array, Tag.CONTRACTED):
                continue
            layout = self._layout(value)
            places = [axes[a] for a in sorted(array.axes)]
            if not set(places) <= set(other_axes) or tuple(w.shape) != layout.shape:
                continue
            at = [other_axes.index(p) for p in places]
            squares, energy, mean = _sum_squares(w, array.axes), *_aligned_moments(x, at)
            self._add("consumed", array, layout, squares * energy)
            self._add("varied", array, layout, squares * np.maximum(energy - mean**2, 0))
            self._add("absolute", array, layout, _reduced(w.abs(), array.axes, torch.sum) * np.sqrt(energy))
            self.saw(self._components(array, layout), x, at)

    def saw(self, components: Ids, tensor: torch.Tensor, axes: list[int]) -> None:
        """Called for an activation that is summed over, once for each product.

        Args:
            components: of its entries along ``axes``, which they stand over.
            tensor: the activation.
            axes: its axes, in the order of those of ``components``.
        """

    def _layout(self, value: Value) -> Layout:
        """Where the entries lie that are left; arrays that lost nothing have no say."""
        lost = [a for a in value.arrays if self.dead[a.ids].any()]
        arrays = tuple(a for a in value.arrays if a in lost or any(a.axes < other.axes for other in lost))
        return layout_of(replace(value, arrays=arrays), self.standing)

    def _tagged(self, array: LabelArray, tag: Tag) -> bool:
        return bool(self.analysis.partition.label_tags[array.ids.flat[0]] & tag)

    def _add(self, name: str, array: LabelArray, layout: Layout, energy: Ids) -> None:
        """Add energies, which stand over the axes of ``array`` in its present size."""
        components = self._components(array, layout).ravel()
        self.sums[name] += np.bincount(components, energy.ravel(), minlength=len(self.sums[name]))

    def _components(self, array: LabelArray, layout: Layout) -> Ids:
        return np.asarray(self.analysis.partition.component[_present(array, layout)])


def _present(array: LabelArray, layout: Layout) -> Ids:
    """The labels that are left, without axes of size 1."""
    ids = array.ids
    index = tuple(
        layout.at(a) if ids.shape[a] > 1 else np.zeros((1,) * ids.ndim, np.int64) for a in range(ids.ndim)
    )
    return np.asarray(np.squeeze(ids[index], tuple(a for a in range(ids.ndim) if a not in array.axes)))


def _energy(tensor: torch.Tensor, axes: Iterable[int]) -> Ids:
    """Mean square over all other axes."""
    return _reduced(tensor.float().square(), axes, torch.mean)


def _sum_squares(tensor: torch.Tensor, axes: Iterable[int]) -> Ids:
    return _reduced(tensor.float().square(), axes, torch.sum)


def _reduced(tensor: torch.Tensor, axes: Iterable[int], how: Callable[..., torch.Tensor]) -> Ids:
    """Sum or mean over all axes but these."""
    others = tuple(a for a in range(tensor.dim()) if a not in set(axes))
    found = how(tensor.float(), others) if others else tensor
    return np.asarray(found.double().cpu().numpy())


def _aligned_moments(tensor: torch.Tensor, axes: list[int]) -> tuple[Ids, Ids]:
    """Mean square and mean over all other axes, with ``axes`` in the order given."""
    order = np.argsort(np.argsort(axes))
    moments = _energy(tensor, axes), _reduced(tensor, axes, torch.mean)
    return moments[0].transpose(order), moments[1].transpose(order)
