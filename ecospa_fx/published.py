"""Published scores: those of LLM-Pruner, Wanda-sp and FLAP, to compare with, on any architecture.

Those papers remove hidden units, and whole heads by what they put out. Here a score ranks single units, so
what they put out ranks the values of a head (``vo``); units of queries and keys, which the papers do not
rank by themselves, score ``sqrt(E[q²] E[k²])`` as for ``"activation"``. Only the scores are theirs: the
target is shared out by ``allocation=``.
"""

from __future__ import annotations

import numpy as np

from ecospa_fx.errors import ScoreError
from ecospa_fx.labels import Ids
from ecospa_fx.scores import ScoreContext, or_dots, register_score, unit_statistic


@register_score("llm_pruner", "gradients", "elements")
def llm_pruner(context: ScoreContext) -> Ids:
    """``Σ |w g|`` over all entries of the unit: LLM-Pruner's element-wise score of first order.

    Ma et al. 2023 (arXiv 2305.11627), "Element¹", summed over the group. They take one gradient of all
    calibration data; so it is here if one gradient is given. The mean over samples is taken of several.
    """
    return unit_statistic(context, "llm_pruner", "elements", "elements")


@register_score("wanda_sp", "activations")
def wanda_sp(context: ScoreContext) -> Ids:
    """``Σ_j ‖x_j‖₂ ‖W[:, j]‖₁`` over the unit's input indices ``j``: Wanda's metric, summed over columns.

    Sun et al. 2023 (arXiv 2306.11695), structured as by An et al. 2023 (arXiv 2312.11983). Experts' stacked
    matrices are not measured; they rank by ``magnitude``.
    """
    return or_dots(context, _measured(context, "wanda_sp", "absolute"))


@register_score("flap", "activations")
def flap(context: ScoreContext) -> Ids:
    """``Σ_j Var[x_j] ‖W[:, j]‖²``, standardised within each layer: FLAP's fluctuation metric.

    An et al. 2023 (arXiv 2312.11983), Eq. 5 and 6: with ``allocation="global"`` layers and kinds lose by it,
    as theirs do. A layer is what keeps equal counts (all heads' values, one matrix of hidden units). The
    variance is that within each batch. A constant is added so that no score is negative. Their bias for the
    means of what went is ``repair=``'s, for products that have one.
    """
    graph, raw = context.graph, or_dots(context, _measured(context, "flap", "varied"))
    left = np.unique(np.concatenate([piece.components for piece, _ in context.weights()]))
    units = left[graph.segment_of[left] >= 0]
    scores = np.zeros(context.size)
    scores[units] = _standardised(raw[units], graph.bundle_of[graph.segment_of[units]])
    return np.asarray(scores - scores.min(initial=0))


def _standardised(values: Ids, groups: Ids) -> Ids:
    """Zero mean and unit variance within each group."""
    count = np.maximum(np.bincount(groups), 1)
    centred = values - (np.bincount(groups, values) / count)[groups]
    spread = np.sqrt(np.bincount(groups, centred**2) / count)
    return np.asarray(centred / np.where(spread > 0, spread, 1)[groups])


def _measured(context: ScoreContext, score: str, field: str) -> Ids:
    found = getattr(context.activations, field, ())
    if len(found) != context.size:
        raise ScoreError(f"score {score!r} needs new calibration data: compiled.calibrate(batches)")
    return np.asarray(found)
