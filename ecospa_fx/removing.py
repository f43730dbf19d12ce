"""What a compiled model can lose."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.balancing import balanced
from ecospa_fx.basis import Turn
from ecospa_fx.change import prepare
from ecospa_fx.optim_state import inner_optimizers
from ecospa_fx.passes.choose import Gradients
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.planning import Loss, calibrated, planned
from ecospa_fx.removal import Removal
from ecospa_fx.repair import Repair, RepairSettings
from ecospa_fx.repairing import repaired
from ecospa_fx.report import SparsifyReport
from ecospa_fx.scores import Score, ScoreFunction
from ecospa_fx.slowness import slow_graphs

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


class Removing:
    """The part of a compiled model that plans what goes, and lets it go."""

    def sparsify(
        self,
        grads: Gradients = None,
        ratio: float | Mapping[str, float] | None = None,
        *,
        target_params: int | None = None,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        repair: Iterable[Any] | None = None,
        score: str | Score | ScoreFunction | None = None,
        calibration: Iterable[Any] | ActivationStatistics | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> SparsifyReport:
        """Remove a part of the parameters that couples hold, in place, as a transaction.

        Args:
            grads: gradients by parameter name; an iterable of such mappings, whose squares are averaged
                (Eq. 6); a :class:`FisherAccumulator`; by default the parameters' own ``.grad``.
            ratio: fraction of the coupled parameters that goes, ``0 <= ratio < 1``; or one for each kind of
                couples, ``{"ffn": 0.5, "qk": 0.3}``, and other kinds stay as they are.
            target_params: size of the whole model afterwards, instead.
            optimizer: one or several optimizers whose state follows.
            repair: batches of inputs, on which the weights that read removed units are fitted to do without
                them (see :mod:`ecospa_fx.passes.repair`). The model then computes what the masked model with
                these new weights computes, and no longer what the original, masked, does.
            score: by which units are ranked; the default is the best that the data at hand allows.
            calibration: batches of inputs (a tensor, a tuple of arguments or a mapping of keyword
                arguments each), for scores that look at activations; or what :meth:`calibrate` returned.
            seed: of random scores.
            settings: fields of :class:`PlanSettings`, such as ``kinds``, ``round_to`` or ``remove_heads``.

        Returns:
            What went.

        Raises:
            EcoSpaError: bad input, or a target out of reach. Model and optimizer are then as they were.
        """
        started = time.perf_counter()
        model = _compiled(self)
        plan = model.plan(
            grads,
            ratio,
            target_params=target_params,
            score=score,
            calibration=calibration,
            seed=seed,
            **settings,
        )
        found = repaired(model, plan.removal, repair) if repair is not None else None
        model.carry_out(plan.removal, optimizer, found)
        report = SparsifyReport.of(plan, time.perf_counter() - started, found)
        return replace(report, slow=report.slow + slow_graphs(s.executable for s in model.signatures))

    def plan(
        self,
        grads: Gradients = None,
        ratio: float | Mapping[str, float] | None = None,
        *,
        target_params: int | None = None,
        score: str | Score | ScoreFunction | None = None,
        calibration: Iterable[Any] | ActivationStatistics | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Plan:
        """What :meth:`sparsify` would remove, as data: print it, save it, :meth:`apply` it later."""
        return planned(
            _compiled(self),
            grads,
            score,
            calibration,
            PlanSettings.of(settings),
            ratio=ratio,
            target_params=target_params,
            seed=seed,
        )

    def calibrate(self, batches: Iterable[Any], loss: Loss | None = None) -> ActivationStatistics:
        """Statistics of activations, to be passed as ``calibration`` any number of times; nothing changes.

        The model runs in the mode that it is in: call ``eval()`` first to leave dropout out.

        Args:
            batches: inputs: a tensor, a tuple of arguments or a mapping of keyword arguments each.
            loss: from the model's output and the batch to a mean over tokens; the score ``"gate"`` needs it.

        Raises:
            InputError: a batch does not fit the model.
        """
        return calibrated(_compiled(self), batches, loss)

    def balance(self, batches: Iterable[Any], kinds: tuple[str, ...] = ("vo", "lowrank")) -> Turn:
        """Mix the units of couples so that few of them carry most; the model computes what it computed.

        Only where it is proved that nothing but linear operators, which treat all units alike, stands
        between the weights of a couple: values of attention, as a rule (:mod:`ecospa_fx.passes.balance`). In
        place, before scores and plans, and before an optimizer has state: its moments do not follow. Caches
        that were made before hold values in the old basis.

        Args:
            batches: inputs: a tensor, a tuple of arguments or a mapping of keyword arguments each.
            kinds: kinds of couples.

        Returns:
            Which couples were mixed, and why others were not.

        Raises:
            RepairError: something has been removed, there are no batches, or the model is spread over ranks.
        """
        model = _compiled(self)
        found = balanced(model, batches, kinds)
        found.apply(dict(model.named_parameters()))
        return replace(found, values={})

    def repair(self, plan: Plan | Removal, batches: Iterable[Any], **settings: Any) -> Repair:
        """What :meth:`sparsify` would add to weights that lose inputs; for :meth:`apply`. Nothing changes.

        Args:
            plan: what will be gone.
            batches: inputs: a tensor, a tuple of arguments or a mapping of keyword arguments each.
            settings: fields of :class:`RepairSettings`.

        Raises:
            EcoSpaError: there are no batches, they do not fit, or the plan does not.
        """
        removal = plan if isinstance(plan, Removal) else plan.removal
        return repaired(_compiled(self), removal, batches, RepairSettings(**settings))

    def apply(
        self,
        plan: Any,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        repair: Repair | None = None,
    ) -> Any:
        """Carry out a plan: rewrite every graph, cut every parameter, move optimizer state.

        A transaction: if anything fails, model and optimizer are bit for bit as they were. With a function
        instead of a plan this is ``nn.Module.apply``.

        Args:
            plan: a plan, or a removal; it must include all that is gone already.
            optimizer: one or several optimizers that hold the parameters.
            repair: what :meth:`repair` found for this plan.
        """
        model = _compiled(self)
        if callable(plan) and not hasattr(plan, "removal"):
            return nn.Module.apply(model, plan)
        _ = model.couplings  # labels tell which entries may only go together
        model.carry_out(getattr(plan, "removal", plan), optimizer, repair)
        return None

    def carry_out(
        self,
        removal: Removal,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        repair: Repair | None = None,
    ) -> None:
        """As :meth:`apply`, also before any capture: what does not fit shows at the first call then."""
        prepare(_compiled(self), removal, inner_optimizers(optimizer), repair).commit()


def _compiled(model: Removing) -> CompiledModel:
    return cast("CompiledModel", model)
