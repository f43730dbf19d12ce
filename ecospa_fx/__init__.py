"""Find the coupled weight matrices of a PyTorch model and remove rows and columns of them together."""

from ecospa_fx.compiled import CompiledModel, compile
from ecospa_fx.coupling import Couple, CouplingGraph
from ecospa_fx.errors import (
    AnalysisError,
    CaptureError,
    CoupleError,
    EcoSpaError,
    GradientError,
    InputError,
    LoadError,
    OptimizerError,
    OptimizerStateError,
    PlanError,
    RewriteError,
    RuleError,
    VerifyError,
)
from ecospa_fx.removal import Removal
from ecospa_fx.rules import rule

__all__ = [
    "AnalysisError",
    "CaptureError",
    "CompiledModel",
    "Couple",
    "CoupleError",
    "CouplingGraph",
    "EcoSpaError",
    "GradientError",
    "InputError",
    "LoadError",
    "OptimizerError",
    "OptimizerStateError",
    "PlanError",
    "Removal",
    "RewriteError",
    "RuleError",
    "VerifyError",
    "__version__",
    "compile",
    "rule",
]

__version__ = "0.1.0"
