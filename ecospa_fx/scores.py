"""Unit scores: which row/column group of a couple goes first. A small protocol, and a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.coupling import DEFAULT_KINDS, CouplingGraph
from ecospa_fx.errors import ScoreError
from ecospa_fx.fisher import GradientStatistics
from ecospa_fx.labels import Ids
from ecospa_fx.removal import Removal
from ecospa_fx.slices import Slice, slices
from ecospa_fx.suggestion import did_you_mean

Need = Literal["gradients", "activations", "elements"]


@dataclass(frozen=True, eq=False)
class ScoreContext:
    """What a score may look at.

    Attributes:
        graph: the couples.
        removal: what is gone so far.
        parameters: the parameters in their present sizes, by name.
        gradients: statistics of gradients, for scores that need ``"gradients"``.
        activations: statistics of calibration data, for scores that need ``"activations"``.
        kinds: kinds of couples in play.
        generator: source of random numbers.
    """

    graph: CouplingGraph
    removal: Removal
    parameters: Mapping[str, torch.Tensor]
    gradients: GradientStatistics | None = None
    activations: ActivationStatistics | None = None
    kinds: tuple[str, ...] = DEFAULT_KINDS
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def size(self) -> int:
        """Number of components: the length of every score."""
        return len(self.graph.couple_of)

    def weights(self) -> Iterator[tuple[Slice, torch.Tensor]]:
        """Every weight axis with units on it, and the weight; biases and scales are left out."""
        for piece in slices(self.graph, self.removal, self.kinds):
            if piece.weight:
                yield piece, self.parameters[piece.parameter].detach()


class ScoreFunction(Protocol):
    """Maps a context to a score for each unit: what scores least goes first.

    Returns:
        float64, shape ``[components]``; only entries of units in play are looked at, and those are finite.
    """

    def __call__(self, context: ScoreContext) -> Ids:
        """Score the units."""


@dataclass(frozen=True)
class Score:
    """A registered score.

    Attributes:
        name: what users call it.
        compute: the function.
        needs: what its context must hold beyond weights.
    """

    name: str
    compute: ScoreFunction
    needs: frozenset[Need] = frozenset()

    def __call__(self, context: ScoreContext) -> Ids:
        """Score the units; see :class:`ScoreFunction`."""
        return self.compute(context)


_REGISTRY: dict[str, Score] = {}


def register_score(name: str, *needs: Need) -> Callable[[ScoreFunction], ScoreFunction]:
    """Add a score under ``name``.

    Args:
        name: what users pass as ``score=``.
        needs: ``"gradients"`` or ``"activations"``, where the score looks at them; ``"elements"``
            for sums over single entries of ``w · g``.

    Raises:
        ScoreError: the name is taken.

    Example:
        >>> @register_score("first-come")
        ... def first_come(context):
        ...     return np.arange(context.size, dtype=np.float64)
        >>> "first-come" in registered_scores()
        True
        >>> _ = unregister_score("first-come")
    """

    def register(compute: ScoreFunction) -> ScoreFunction:
        if name in _REGISTRY:
            raise ScoreError(
                f"there is a score {name!r} already; take another name, or unregister_score it first"
            )
        _REGISTRY[name] = Score(name, compute, frozenset(needs))
        return compute

    return register


def unregister_score(name: str) -> Score:
    """Take a score out of the registry and return it."""
    score = find_score(name)
    return _REGISTRY.pop(score.name)


def registered_scores() -> dict[str, Score]:
    """All scores by name."""
    return dict(_REGISTRY)


def find_score(score: str | Score | ScoreFunction) -> Score:
    """The score called ``score``; a function of one's own passes through.

    Raises:
        ScoreError: no score has this name.
    """
    if isinstance(score, Score):
        return score
    if not isinstance(score, str):
        return Score(getattr(score, "__name__", type(score).__name__), score)
    if score not in _REGISTRY:
        meant = did_you_mean(score, _REGISTRY) or ";"
        raise ScoreError(f"unknown score {score!r}{meant} There are: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[score]


@register_score("l1_product")
def l1_product(context: ScoreContext) -> Ids:
    r"""Eq. 9: the product of the L1 norms of a unit's row and column, normalised within the couple.

    For any number of members the product runs over all weight axes of the couple (gate, up and down make
    three factors). Where a unit takes several indices of one axis (a RoPE pair, the heads of a KV group,
    queries and keys in one fused weight) their L1 norms are added first:

    .. math:: v_i = \frac{\prod_k \sum_{j \in i} \lVert W_k[j] \rVert_1}
                         {\sum_{i'} \prod_k \sum_{j \in i'} \lVert W_k[j] \rVert_1}

    In a pretrained model this must not choose units alone: a few units of low norm can carry massive
    activations (see ``docs/scores.md``).
    """
    logs, present = np.zeros(context.size), np.zeros(context.size, bool)
    with np.errstate(divide="ignore"):
        for piece, weight in context.weights():
            units = np.unique(piece.components)
            norms = np.bincount(piece.components, piece.norms(weight, 1), minlength=context.size)
            logs[units] += np.log(norms[units])
            present[units] = True
    return _exponential_shares(context, logs, np.flatnonzero(present & (context.graph.couple_of >= 0)))


def _exponential_shares(context: ScoreContext, logs: Ids, units: Ids) -> Ids:
    """exp(logs) of ``units``, normalised within each couple."""
    couple = context.graph.couple_of[units]
    number = len(context.graph.couples)
    top = np.full(number, -np.inf)
    np.maximum.at(top, couple, logs[units])
    values = np.exp(logs[units] - np.where(np.isfinite(top), top, 0)[couple])
    scores = np.zeros(context.size)
    scores[units] = values / np.maximum(np.bincount(couple, values, minlength=number), 1e-300)[couple]
    return scores


@register_score("magnitude")
def magnitude(context: ScoreContext) -> Ids:
    """The L2 norm of all weight entries of the unit."""
    total = np.zeros(context.size)
    for piece, weight in context.weights():
        total += np.bincount(piece.components, piece.squares(weight), minlength=context.size)
    return np.sqrt(total)


@register_score("random")
def random(context: ScoreContext) -> Ids:
    """Uniform random numbers: the yardstick for all others."""
    return context.generator.random(context.size)


@register_score("taylor", "gradients")
def taylor(context: ScoreContext) -> Ids:
    """``|w · g|``: to first order, what the loss changes by if the unit goes.

    The product runs over a unit's entries of one weight; the mean over its weights is taken. Weights without
    a gradient (frozen ones, beside adapters) do not count; see :func:`where_nothing_is_seen`.
    """
    return unit_statistic(context, "taylor", "taylor")


@register_score("fisher", "gradients")
def fisher(context: ScoreContext) -> Ids:
    """``½ Σ w² E[g²]`` over a unit's entries: the loss's change to second order, with a diagonal Fisher."""
    return unit_statistic(context, "fisher", "fisher") / 2


def unit_statistic(context: ScoreContext, score: str, field: str, option: str = "units") -> Ids:
    """A field of :class:`~ecospa_fx.fisher.GradientStatistics`; an error says with what option it is kept."""
    found = getattr(context.gradients, field)
    if found is None:
        raise ScoreError(
            f"score {score!r} needs statistics of units: FisherAccumulator(compiled, {option}=True)"
        )
    return where_nothing_is_seen(context, np.asarray(found, np.float64))


def where_nothing_is_seen(context: ScoreContext, scores: Ids) -> Ids:
    """Rank the units of couples in which every gradient score is zero by ``magnitude``.

    So it is where no weight of a couple trains, and on the first step of fresh adapters, whose one factor is
    zero. The values are so small that such a couple stays below all others.
    """
    couple, number = context.graph.couple_of, len(context.graph.couples)
    seen = np.zeros(number + 1, bool)
    seen[couple[scores != 0]] = True
    if seen[:number].all():
        return scores
    size = magnitude(context)
    return np.where(seen[couple], scores, 1e-30 * size / max(float(size.max(initial=0)), 1e-300))


@register_score("activation", "activations")
def activation(context: ScoreContext) -> Ids:
    """Activation norm times consumer norm, from a forward pass over calibration data.

    A unit that a weight sums over scores ``sqrt(Σ_j E[x_j²] ‖W[:, j]‖²)``: what it adds to the layer's
    output. A unit of queries and keys scores ``sqrt(E[q²] E[k²])`` at the dot product. Couples for which
    no such product was seen fall back on ``magnitude``.
    """
    seen = context.activations
    if seen is None:
        raise ScoreError("score 'activation' needs calibration data")
    return or_dots(context, np.sqrt(seen.consumed))


def or_dots(context: ScoreContext, consumed: Ids) -> Ids:
    """Scores of units that a weight sums over; ``sqrt(E[q²] E[k²])`` where two activations are multiplied.

    Couples for which neither was seen fall back on :func:`magnitude`.
    """
    seen = context.activations
    assert seen is not None
    dot = np.sqrt(seen.left * seen.right)
    scores = np.where(dot > 0, dot, consumed)
    measured = np.zeros(len(context.graph.couples) + 1, bool)
    measured[context.graph.couple_of[scores > 0]] = True
    return np.where(measured[context.graph.couple_of], scores, magnitude(context))


@register_score("gate", "activations")
def gate(context: ScoreContext) -> Ids:
    """``½ E[(Σ_i x_i ∂L/∂x_i)²]``, token by token: the loss's change to second order if the unit goes.

    The sum runs over the unit's entries where they are summed over: the columns of the weight that reads it,
    or, of queries and keys, the queries' side of the product (a RoPE pair takes two, a KV group those of all
    its heads). One unit for all kinds of couples, so that it ranks them together (``allocation="global"``).
    Needs calibration data that were seen with a loss: ``compiled.calibrate(batches, loss)``. Couples of which
    nothing was seen rank by ``magnitude``, below all others.
    """
    seen = context.activations
    if seen is None or not seen.gates.any():
        raise ScoreError(
            "score 'gate' needs calibration data with a loss: calibration=compiled.calibrate(batches, loss)"
        )
    return where_nothing_is_seen(context, seen.gates)


def default_score(has_gradients: bool, has_activations: bool) -> str:
    """The best score that the data at hand allows, by measurement (docs/scores.md)."""
    if has_gradients:
        return "fisher"
    return "activation" if has_activations else "l1_product"
