"""Follow: from removed parameter entries to the labels that die in one program."""

from __future__ import annotations

import numpy as np

from ecospa_fx.errors import PlanError
from ecospa_fx.labels import Ids, Partition
from ecospa_fx.program import Analysis
from ecospa_fx.removal import Removal


def dead_labels(analysis: Analysis, removal: Removal) -> Ids:
    """Labels that are dead after a removal; the finest decide, coarser ones follow.

    Raises:
        PlanError: this program ties entries together of which the removal takes only some.
    """
    partition = analysis.partition
    dead, torn = _told(analysis, removal)
    components = np.zeros(partition.num_components, bool)
    components[partition.component[dead]] = True
    components = partition.close(components)
    torn += _torn(analysis, dead, components)
    if torn or (components & (partition.pin >= 0)).any():
        raise PlanError(
            "this call of the model ties more entries together than the plan removes: "
            f"{', '.join(dict.fromkeys(torn))[:300]}"
        )
    dead = np.asarray(components[partition.component])
    _check_routers(analysis, dead)
    return dead


def _told(analysis: Analysis, removal: Removal) -> tuple[Ids, list[str]]:
    """Labels whose parameter entries are removed, and the parameters that lose too few of one label."""
    dead, torn = np.zeros(len(analysis.partition.component), bool), []
    for name, axes in analysis.labels.items():
        for axis, ids in enumerate(axes):
            if ids is not None and axis in removal.removed.get(name, {}):
                gone = _gone(removal, name, axis, analysis.program.parameters[name])
                stack = removal.stack(name, axis)
                if stack and stack != analysis.stacked.get(name):
                    gone = gone[removal.kept(name, stack.rows, len(gone))]
                    torn += [name] * bool((gone != gone[:1]).any())
                    gone = gone[0]
                dead[ids] = gone
    return dead, torn


def _torn(analysis: Analysis, dead: Ids, components: Ids) -> list[str]:
    """Parameters of which the dead components hold more than is removed, or a slot with something left."""
    partition = analysis.partition
    experts = partition.chosen[partition.coarse]
    hollow = partition.coarse[components[partition.coarse] & ~components[partition.fine] & ~experts]
    return [
        name
        for name, axes in analysis.labels.items()
        if any(ids is not None and (components[partition.component[ids]] != dead[ids]).any() for ids in axes)
        or _holds(axes, partition, hollow)
    ]


def _check_routers(analysis: Analysis, dead: Ids) -> None:
    """Every router can still choose as many experts as it did."""
    for router in analysis.program.routers:
        left = ~dead[analysis.space.experts(router.number, router.experts)]
        fewest = int(left.reshape(router.parts, -1).sum(1).min())
        if router.refused is None and not left.all() and fewest < router.least:
            where = f" in one of its {router.parts} groups" if router.parts > 1 else ""
            raise PlanError(
                f"the plan leaves {fewest} of the experts of {router.name}{where}, whose router takes "
                f"{router.chosen} for each token: at least {router.least} have to stay{where and ' in each'}"
            )


def _gone(removal: Removal, name: str, axis: int, shape: tuple[int, ...]) -> Ids:
    """Which indices of an axis are gone; for a stack with a choice of its own in each matrix, row by row."""
    gone = ~removal.kept(name, axis, removal.length(name, axis, shape))
    stack = removal.stack(name, axis)
    return gone.reshape(shape[stack.rows], -1) if stack else gone


def _holds(axes: tuple[Ids | None, ...], partition: Partition, components: Ids) -> bool:
    """Whether labels of a parameter belong to one of the components."""
    return any(ids is not None and np.isin(partition.component[ids], components).any() for ids in axes)
