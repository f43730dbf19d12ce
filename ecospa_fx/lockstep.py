"""Lockstep: a model, its optimizers and its copies become smaller together, on all ranks or on none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.agreement import together
from ecospa_fx.change import Change, prepare
from ecospa_fx.distributed import check_placed, rebuild, unwrap
from ecospa_fx.errors import EcoSpaError, OptimizerError, ScheduleError
from ecospa_fx.optim_state import StateRules, inner_optimizers
from ecospa_fx.passes.fit import check_held
from ecospa_fx.removal import Removal


class Lockstep:
    """What shrinks in one transaction.

    Args:
        model: the compiled model, or what wraps it.
        optimizer: one optimizer, or several.
        followers: copies of the compiled model, or what wraps them.
        group: the ranks; all of them by default.

    Attributes:
        compiled: the model inside ``model``.
        optimizers: the optimizers, each without what wraps it.
        wrappers: what may be a ``DistributedDataParallel`` and is rebuilt after a removal.

    Raises:
        ScheduleError: there is no compiled model in ``model`` or in a follower.
        OptimizerError: an optimizer holds none of the model, or its state cannot follow.
        RewriteError: ``fully_shard`` was called on modules that the compiled model does not call.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        followers: Iterable[nn.Module] = (),
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.compiled = unwrap(model)
        self.wrappers = [model]
        self.group = group
        self.optimizers = self.checked(optimizer)
        self.followers = [unwrap(follower) for follower in followers]
        check_placed(self.compiled)

    def checked(self, optimizer: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
        """Optimizers that can follow, as a list.

        Raises:
            OptimizerError: one of them cannot, or there is none.
        """
        optimizers = inner_optimizers(optimizer)
        if not optimizers:
            raise OptimizerError("no optimizer was given")
        check_held(dict(self.compiled.named_parameters()), (), optimizers)
        for one in optimizers:
            StateRules(one)  # refuses those that cannot follow
        return optimizers

    def check_trained(self, kinds: Sequence[str], optimizers: Sequence[Optimizer]) -> None:
        """Check that ``optimizers`` hold whatever couples of ``kinds`` hold and train.

        Raises:
            OptimizerError: they do not.
        """
        couples = [c for c in self.compiled.couplings.couples if c.kind in kinds]
        parameters = dict(self.compiled.named_parameters(remove_duplicate=False))
        held = {id(parameters[w.parameter]) for c in couples for w in c.weights}
        check_held(parameters, held, optimizers)

    def changes(self, removal: Removal) -> list[Change]:
        """One for the model and one for each follower; all are checked, and none is made yet."""
        own = prepare(self.compiled, removal, self.optimizers)
        return [own, *(prepare(follower, removal) for follower in self.followers)]

    def commit(self, changes: Sequence[Change]) -> None:
        """Make all changes on all ranks, or none."""
        made: list[Change] = []

        def work() -> None:
            for change in changes:
                change.commit()
                made.append(change)

        try:
            together("cutting the parameters", work, self.group)
        except BaseException:
            for change in reversed(made):
                change.rollback()
            raise
        self._rebuild()

    def rollback(self, changes: Sequence[Change]) -> None:
        """Undo :meth:`commit`."""
        for change in reversed(changes):
            change.rollback()
        self._rebuild()

    def _rebuild(self) -> None:
        for wrapper in self.wrappers:
            rebuild(wrapper)


def changes_to(lockstep: Lockstep, removal: Removal) -> list[Change]:
    """As :meth:`Lockstep.changes`, for what a saved state removed.

    Raises:
        ScheduleError: it does not fit the model, or what is gone already.
    """
    try:
        return lockstep.changes(removal)
    except EcoSpaError as error:
        hint = (
            ". Load the schedule's state before the optimizer's" if isinstance(error, OptimizerError) else ""
        )
        raise ScheduleError(f"what the state removed does not fit the model: {error}{hint}") from error
