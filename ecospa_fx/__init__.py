"""Find the coupled weight matrices of a PyTorch model and remove rows and columns of them together."""

from typing import TYPE_CHECKING, Any

from ecospa_fx import optim_rules as optim_rules  # registers them
from ecospa_fx import published as published  # registers them
from ecospa_fx.accumulator import FisherAccumulator
from ecospa_fx.adapters import merge_adapters
from ecospa_fx.basis import Turn
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.coupling import Couple, CouplingGraph
from ecospa_fx.errors import (
    AnalysisError,
    BackwardError,
    CaptureError,
    CoupleError,
    EcoSpaError,
    GradientError,
    InputError,
    LoadError,
    NativeError,
    OptimizerError,
    OptimizerStateError,
    PlanError,
    RepairError,
    RewriteError,
    RuleError,
    ScheduleError,
    ScoreError,
    SizeError,
    VerifyError,
)
from ecospa_fx.front import compile, load
from ecospa_fx.masked import Difference
from ecospa_fx.optim_state import register_optimizer_state
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.pretrained import from_pretrained
from ecospa_fx.removal import Removal
from ecospa_fx.repair import Repair, RepairSettings
from ecospa_fx.report import SparsifyReport
from ecospa_fx.rules import rule
from ecospa_fx.schedule import SparsitySchedule
from ecospa_fx.scores import register_score

if TYPE_CHECKING:
    from ecospa_fx.checkpoint import load_checkpoint, save_checkpoint
    from ecospa_fx.trainer import EcoSpaCallback

__all__ = [
    "AnalysisError",
    "BackwardError",
    "CaptureError",
    "CompiledModel",
    "Couple",
    "CoupleError",
    "CouplingGraph",
    "Difference",
    "EcoSpaCallback",
    "EcoSpaError",
    "FisherAccumulator",
    "GradientError",
    "InputError",
    "LoadError",
    "NativeError",
    "OptimizerError",
    "OptimizerStateError",
    "Plan",
    "PlanError",
    "PlanSettings",
    "Removal",
    "Repair",
    "RepairError",
    "RepairSettings",
    "RewriteError",
    "RuleError",
    "ScheduleError",
    "ScoreError",
    "SizeError",
    "SparsifyReport",
    "SparsitySchedule",
    "Turn",
    "VerifyError",
    "__version__",
    "compile",
    "from_pretrained",
    "load",
    "load_checkpoint",
    "merge_adapters",
    "register_optimizer_state",
    "register_score",
    "rule",
    "save_checkpoint",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What needs transformers' Trainer, or checkpoints of torch, is imported when it is first asked for."""
    if name in ("load_checkpoint", "save_checkpoint"):
        from ecospa_fx import checkpoint

        return getattr(checkpoint, name)
    if name == "EcoSpaCallback":
        from ecospa_fx.trainer import EcoSpaCallback

        return EcoSpaCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
