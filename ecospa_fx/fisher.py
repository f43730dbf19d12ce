"""Empirical Fisher information of couples (Eq. 6), streamed from gradients that are never kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ecospa_fx.agreement import all_sum
from ecospa_fx.coupling import DEFAULT_KINDS, CouplingGraph
from ecospa_fx.errors import GradientError
from ecospa_fx.gradients import checked_gradients
from ecospa_fx.labels import Ids
from ecospa_fx.removal import Removal
from ecospa_fx.sharded import whole
from ecospa_fx.slices import Slice, slices


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    r"""What gradients say about couples and units.

    Eq. 6 gives the importance of a couple of two weight matrices as the mean over both of their mean squared
    gradient. With any number ``n`` of members (gate, up and down; the two sides of a KV group) it becomes

    .. math:: \hat I = \frac1n \sum_{k=1}^n \frac1{|W_k|} \frac1{|D|} \sum_D \sum_{i,j}
              \left(\frac{\partial L}{\partial W_k}\right)_{ij}^2

    where ``W_k`` is the part of the k-th weight that belongs to the couple: of a fused or per-head weight
    just the couple's own rows or columns, those of queries and keys in one fused weight together. Biases do
    not count. Members without a gradient (frozen by the user) are left out of sum and mean.

    Attributes:
        samples: number of gradients averaged, \|D\| of Eq. 6.
        importance: Eq. 6 for each couple, NaN where no member has a gradient, shape ``[couples]``.
        taylor: for each unit the mean over samples of ``|w · g|``, averaged over the unit's weights;
            shape ``[components]``, None unless it was asked for.
        fisher: for each unit the mean over samples of ``Σ (w g)²`` over its entries; same shape.
        elements: for each unit the mean over samples of ``Σ |w g|`` over its entries; same shape, None unless
            it was asked for.
    """

    samples: int
    importance: Ids
    taylor: Ids | None = None
    fisher: Ids | None = None
    elements: Ids | None = None


_SUMS = ("_importance", "_taylor", "_fisher")


class FisherSums:
    """Running sums over gradients for one model in one state: Eq. 6 before it is divided by the samples.

    Args:
        graph: the couples.
        removal: what is gone; gradients have the shapes that are left.
        units: also keep what first-order unit scores need.
        kinds: couples of other kinds are left out.
        elements: also keep ``Σ |w g|`` of each unit, which doubles the time of reading.
    """

    def __init__(self, graph: CouplingGraph, removal: Removal, units: bool = True,
                 kinds: Sequence[str] = DEFAULT_KINDS, elements: bool = False) -> None:  # fmt: skip
        self.graph = graph
        self.elements = elements
        self._names = (*_SUMS, "_elements") if elements else _SUMS
        self.kinds = tuple(kinds)
        self.held = slices(graph, removal, kinds)
        self.units = units
        self.samples = 0
        self._importance = np.zeros(len(graph.couples))
        self._taylor = np.zeros(len(graph.couple_of))
        self._fisher = np.zeros(len(graph.couple_of))
        self._elements = np.zeros(len(graph.couple_of))

    def add(
        self,
        gradients: Mapping[str, torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        scale: float = 1.0,
    ) -> None:
        """Add one sample.

        Args:
            gradients: by parameter name, in present shapes; weights without one do not count.
            parameters: the parameters themselves, by the same names.
            scale: what the gradients have been multiplied with.

        Raises:
            GradientError: a gradient holds NaN or infinite entries; nothing was added.
        """
        found = [
            self._reduced(piece, gradients[piece.parameter], parameters[piece.parameter])
            for piece in self.held
            if piece.parameter in gradients
        ]
        _check_finite(found, gradients)
        self._importance += self._mean_squares([f for f in found if f.piece.weight]) / scale**2
        for f in found:
            self._add_units(f, scale)
        self.samples += 1

    def _reduced(self, piece: Slice, gradient: torch.Tensor, parameter: torch.Tensor) -> _Reduced:
        square = piece.squares(gradient.detach())
        if not self.units:
            return _Reduced(piece, square)
        product = parameter.detach() * gradient.detach()
        sizes = piece.norms(product, 1) if self.elements else None
        return _Reduced(piece, square, piece.sums(product), piece.squares(product), sizes)

    def _mean_squares(self, found: Sequence[_Reduced]) -> Ids:
        """Eq. 6 for one sample."""
        number = len(self.graph.couples)
        total, members = np.zeros(number), np.zeros(number)
        for f in found:
            couple, inside = f.piece.couples, f.piece.couples >= 0
            square = np.bincount(couple[inside], f.square[inside], minlength=number)
            entries = np.bincount(couple[inside], minlength=number) * f.piece.across
            total += square / np.maximum(entries, 1)
            members += entries > 0
        return np.where(members > 0, total / np.maximum(members, 1), np.nan)

    def _add_units(self, f: _Reduced, scale: float) -> None:
        if f.dot is None or f.work is None:
            return
        size = len(self._taylor)
        self._fisher += np.bincount(f.piece.components, f.work, minlength=size) / scale**2
        if f.absolute is not None:
            self._elements += np.bincount(f.piece.components, f.absolute, minlength=size) / abs(scale)
        if f.piece.weight:
            self._taylor += np.abs(np.bincount(f.piece.components, f.dot, minlength=size)) / abs(scale)

    def reduce(self, group: dist.ProcessGroup | None) -> None:
        """Add up the sums of all ranks, so that each of them has the same."""
        flat = np.concatenate([[self.samples], *(getattr(self, name) for name in self._names)])
        total = all_sum(flat, group)
        self.samples = round(float(total[0]))
        self._set(total[1:])

    def _set(self, flat: Ids) -> None:
        ends = np.cumsum([len(getattr(self, name)) for name in self._names])
        for name, part in zip(self._names, np.split(flat, ends[:-1]), strict=True):
            setattr(self, name, part)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as numbers and tensors."""
        sums = {name: torch.from_numpy(getattr(self, name).copy()) for name in self._names}
        return {"samples": self.samples, **sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict` of the same model in the same state.

        Raises:
            GradientError: it is of another model, or lacks what is kept here.
        """
        if lacking := [name for name in self._names if name not in state]:
            raise GradientError(
                f"the saved Fisher sums lack {', '.join(lacking)}: they were made with elements=False"
            )
        for name in self._names:
            if tuple(state[name].shape) != getattr(self, name).shape:
                raise GradientError(
                    f"the saved Fisher sums are of another model: {name} has {state[name].numel()} entries, "
                    f"not {len(getattr(self, name))}"
                )
        self.samples = int(state["samples"])
        self._set(np.concatenate([state[name].double().cpu().numpy() for name in self._names]))

    def result(self) -> GradientStatistics:
        """The mean over all samples so far."""
        mean = self._importance / self.samples
        if not self.units:
            return GradientStatistics(self.samples, mean)
        weights = np.zeros(len(self._taylor))
        for piece in self.held:
            if piece.weight:
                weights[np.unique(piece.components)] += 1
        taylor = self._taylor / np.maximum(weights, 1) / self.samples
        fisher = self._fisher / self.samples
        elements = self._elements / self.samples if self.elements else None
        return GradientStatistics(self.samples, mean, taylor, fisher, elements)


@dataclass(frozen=True, eq=False)
class _Reduced:
    """One gradient, summed over all axes but one: squares; w·g, its squares, its 1-norm; ``[size]``."""

    piece: Slice
    square: Ids
    dot: Ids | None = None
    work: Ids | None = None
    absolute: Ids | None = None


def _check_finite(found: Iterable[_Reduced], gradients: Mapping[str, torch.Tensor]) -> None:
    """The sums tell where to look; only there are the gradients themselves read again."""
    suspect = dict.fromkeys(f.piece.parameter for f in found if not np.isfinite(f.square).all())
    odd = [n for n in suspect if not bool(torch.isfinite(whole(gradients[n])).all())]
    if odd:
        raise GradientError(f"gradients hold NaN or infinite entries: {', '.join(odd)}")


def gradient_statistics(
    graph: CouplingGraph,
    removal: Removal,
    parameters: Mapping[str, torch.Tensor],
    gradients: Iterable[Mapping[str, torch.Tensor]],
    units: bool = True,
    kinds: Sequence[str] = DEFAULT_KINDS,
    elements: bool = False,
) -> GradientStatistics:
    """Eq. 6 from gradients at hand.

    Args:
        graph: the couples.
        removal: what is gone so far.
        parameters: all parameters of the model by name, a tied one under each of its names.
        gradients: one mapping from parameter name to gradient for each sample.
        units: also compute what first-order unit scores need.
        kinds: couples of other kinds are left out.
        elements: also compute what the score ``llm_pruner`` needs.

    Raises:
        GradientError: see :meth:`~ecospa_fx.accumulator.FisherAccumulator.update`;
            or there was no sample at all.
    """
    sums = FisherSums(graph, removal, units, kinds, elements)
    held = [piece.parameter for piece in sums.held]
    for sample in gradients:
        sums.add(checked_gradients(held, parameters, sample), parameters)
    if not sums.samples:
        raise GradientError("no gradients were given: the iterable is empty")
    return sums.result()
