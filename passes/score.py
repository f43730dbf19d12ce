"""Score: a number for each unit, what is least goes first. Nothing is changed."""

from __future__ import annotations

import numpy as np

from ecospa_fx.census import units_of_kinds
from ecospa_fx.errors import GradientError, ScoreError
from ecospa_fx.labels import Ids
from ecospa_fx.scores import Score, ScoreContext, ScoreFunction, find_score


def score(how: str | Score | ScoreFunction, context: ScoreContext) -> Ids:
    """Score all units in play.

    Args:
        how: name of a registered score, or a function of one's own.
        context: what it may look at.

    Returns:
        float64, shape ``[components]``.

    Raises:
        ScoreError: no such score, it lacks calibration data, or its result is malformed.
        GradientError: it lacks gradients.
    """
    chosen = find_score(how)
    _check_needs(chosen, context)
    return _checked(chosen.name, np.asarray(chosen(context), np.float64), context)


def _check_needs(chosen: Score, context: ScoreContext) -> None:
    if "gradients" in chosen.needs and context.gradients is None:
        raise GradientError(f"score {chosen.name!r} needs gradients: call backward() first, or pass grads")
    if "activations" in chosen.needs and context.activations is None:
        raise ScoreError(f"score {chosen.name!r} needs calibration data: pass calibration=[inputs, ...]")


def _checked(name: str, values: Ids, context: ScoreContext) -> Ids:
    if values.shape != (context.size,):
        raise ScoreError(f"score {name!r} gave shape {values.shape}, not {(context.size,)}")
    graph = context.graph
    units = np.flatnonzero(units_of_kinds(graph, context.kinds))
    odd = units[~np.isfinite(values[units])]
    if len(odd):
        names = list(dict.fromkeys(graph.couples[c].name for c in graph.couple_of[odd]))
        raise ScoreError(f"score {name!r} is NaN or infinite in {', '.join(names[:5])} ({len(odd)} units)")
    return values
