"""Tools that prove what you add: a rule for an operator, or a model that must survive any removal.

>>> import torch
>>> from ecospa_fx.testing import prove, sample
>>> prove("aten.silu.default", sample(torch.randn(3, 5)))
Proof(target='aten.silu.default', drops=4, rolls=2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ecospa_fx import census
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.coupling import DEFAULT_KINDS
from ecospa_fx.errors import RuleError, VerifyError
from ecospa_fx.labels import Ids, Nature
from ecospa_fx.oracles.drop import drop
from ecospa_fx.oracles.roll import roll
from ecospa_fx.oracles.trial import Axes, Operand, Sample, Trial
from ecospa_fx.passes.check import tolerance as allowed
from ecospa_fx.removal import Removal

__all__ = [
    "Operand",
    "Proof",
    "Sample",
    "activation",
    "assert_equals_masked",
    "constant",
    "index",
    "prove",
    "random_removal",
    "sample",
    "truth",
    "weight",
]


def activation(*shape: int, on: Axes | Iterable[Axes] = (), zero: bool = True, low: float = -2.0,
               high: float = 2.0, kind: str = "real", symbolic: tuple[int, ...] = ()) -> Operand:  # fmt: skip
    """An activation with a label array for each entry of ``on``: an axis, or a tuple of axes for a joint one.

    >>> activation(2, 3, 5, on=[(1, 2)]).on
    ((1, 2),)
    """
    return Operand(shape, _listed(on), Nature.ACTIVATION, zero, low, high, kind, symbolic)


def weight(*shape: int, low: float = -2.0) -> Operand:
    """A parameter: labels on every axis."""
    return Operand(shape, tuple(a for a, n in enumerate(shape) if n > 1), Nature.WEIGHT, low=low)


def constant(*shape: int, low: float = -2.0) -> Operand:
    """A buffer, such as a cosine table: no labels, and gathered at use."""
    return Operand(shape, (), Nature.CONSTANT, low=low)


def index(*shape: int, high: int) -> Operand:
    """Integers from 0 to ``high - 1``, such as tokens."""
    return Operand(shape, (), Nature.INDEX, low=0, high=high, kind="integer")


def truth(*shape: int, on: Axes | Iterable[Axes] = ()) -> Operand:
    """Truth values, such as a mask; with labels they come from an activation and need not be false."""
    nature = Nature.ACTIVATION if on != () else Nature.INDEX
    return Operand(shape, _listed(on), nature, False, 0, 2, kind="truth")


def _listed(on: Axes | Iterable[Axes]) -> tuple[Axes, ...]:
    return (on,) if isinstance(on, int) else tuple(on)


def sample(
    *args: Any,
    frozen: bool = False,
    shape_only: bool = False,
    rolls: bool = True,
    kept_in: torch.dtype = torch.float64,
    **kwargs: Any,
) -> Sample:
    """A sample call of an operator.

    Args:
        args: its positional arguments. A plain floating-point tensor is an activation with labels on every
            axis, any other tensor an index.
        frozen: the rule has to refuse every removal.
        shape_only: the results are random or uninitialised.
        rolls: False where no rotation of labels is a symmetry of the call.
        kept_in: dtype of the real operands, for operators that do not know double precision.
        kwargs: its keyword arguments.
    """
    placed = pytree.tree_map(_operand, (args, kwargs), is_leaf=lambda x: isinstance(x, (Tensor, Operand)))
    return Sample(placed[0], placed[1], frozen, shape_only, rolls, kept_in)


def _operand(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if not leaf.is_floating_point():
        return Operand(tuple(leaf.shape), (), Nature.INDEX, values=leaf)
    on = tuple(a for a, n in enumerate(leaf.shape) if n > 1)
    return Operand(tuple(leaf.shape), on, values=leaf)


@dataclass(frozen=True)
class Proof:
    """What the oracles compared.

    Attributes:
        target: the operator.
        drops: removals that were compared with the masked call.
        rolls: rotations that were compared with the original call.
    """

    target: str
    drops: int
    rolls: int


def prove(target: str | Callable[..., Any], *samples: Sample, seed: int = 0) -> Proof:
    """Prove the rule of an operator on sample calls, by the drop and the roll oracle.

    Args:
        target: the operator, or its name, such as ``"mylib.myop.default"``.
        samples: calls, made by :func:`sample`.
        seed: of values and removals.

    Returns:
        How much was compared.

    Raises:
        VerifyError: the rule is wrong, or freezes what should be free; the message says which entries.
        RuleError: there is no such operator, or no sample.
    """
    called = _resolve(target) if isinstance(target, str) else target
    if not samples:
        raise RuleError(f"nothing to prove about {target}: pass at least one sample(...)")
    drops = rolls = 0
    for each in samples:
        trial = Trial(called, each, seed)
        dropped, rolled = drop(trial, seed), roll(trial)
        _require_coverage(trial, dropped, rolled)
        drops, rolls = drops + dropped, rolls + rolled
    return Proof(trial.call.target, drops, rolls)


def _require_coverage(trial: Trial, dropped: int, rolled: int) -> None:
    each = trial.sample
    if each.frozen and len(trial.free):
        raise VerifyError(trial.name("the sample says that everything is frozen, but something can go"))
    if each.frozen or not any(v.arrays for v in trial.given):
        return
    if not dropped:
        reasons = "; ".join(dict.fromkeys(r.text for r in trial.analysis.partition.reasons))
        raise VerifyError(trial.name(f"nothing could be removed ({reasons or 'no rows of equal length'})"))
    if each.rolls and not rolled:
        raise VerifyError(
            trial.name("no rotation of labels is a symmetry of the call; say so with rolls=False")
        )


def _resolve(name: str) -> Callable[..., Any]:
    namespace, _, rest = name.partition(".")
    try:
        packet, overload = rest.split(".")
        found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, ValueError):
        raise RuleError(f"torch has no operator {name!r}; names look like 'aten.silu.default'") from None
    return found


def random_removal(
    compiled: CompiledModel,
    fraction: float,
    seed: int = 0,
    kinds: Iterable[str] = DEFAULT_KINDS,
    ragged: bool = False,
) -> Removal:
    """A random removal, on top of what is gone already, that the model can carry out.

    Args:
        compiled: the model, captured.
        fraction: of the units of each segment (a head, say); those that stay equally wide lose equally many.
        seed: of the choice.
        kinds: kinds of couples to take from.
        ragged: heads lose other counts each, between none and twice the fraction.

    Returns:
        The removal; at least one unit of every segment stays.
    """
    graph = compiled.couplings
    rng, kinds = np.random.default_rng(seed), frozenset(kinds)
    dead = _gone(compiled)
    for bundle in np.unique(graph.bundle_of):
        segments = np.flatnonzero(graph.bundle_of == bundle)
        found = [np.flatnonzero((graph.segment_of == s) & ~dead) for s in segments]
        alive = [units for units in found if units.size]  # heads and experts may be gone
        if alive and graph.couples[graph.couple_of[alive[0][0]]].kind in kinds:
            fewest = min(len(units) for units in alive)
            least = graph.least.get(int(segments[0]), 1)
            free = ragged and not graph.boxed[segments[0]]
            for units in alive:
                share = 2 * fraction * rng.random() if free else fraction
                most = (len(units) if free else fewest) - least
                count = min(int((most + 1) * share), most)
                dead[rng.permutation(units)[:count]] = True
    return removal_of(compiled, dead)


def _gone(compiled: CompiledModel) -> Ids:
    """Components that were removed before."""
    return census.dead_components(compiled.couplings, compiled.removal)


def removal_of(compiled: CompiledModel, dead: Ids) -> Removal:
    """The removal of a set of units.

    Args:
        compiled: the model, captured.
        dead: bool, one per component of the model's labels; what is made of dead units only goes as well.
    """
    dead = compiled.analysis.partition.close(dead)
    return census.removal_of(compiled.couplings, dead)


def assert_equals_masked(
    compiled: CompiledModel,
    *args: Any,
    rounds: int = 2,
    fraction: float = 0.4,
    seed: int = 0,
    tolerance: float | None = None,
    optimizer: Optimizer | None = None,
    **kwargs: Any,
) -> None:
    """Remove random units in rounds, and compare with the masked model before the first and after each.

    The model is smaller afterwards.

    Args:
        compiled: the model.
        args: positional arguments of a call; without any, those of the first capture.
        rounds: how often units are removed.
        fraction: of the units of each segment, per round.
        seed: of the choice.
        tolerance: relative; by default what round-off explains.
        optimizer: follows, if given.
        kwargs: keyword arguments of the call.

    Raises:
        VerifyError: outputs or gradients differ by more.
    """
    for number in range(rounds + 1):
        if number:
            compiled.apply(random_removal(compiled, fraction, seed + number), optimizer)
        found = compiled.verify(*args, **kwargs)
        limit = allowed(list(compiled.parameters())) if tolerance is None else tolerance
        if not found.within(limit):
            raise VerifyError(f"after {number} rounds of removal: {found}")
