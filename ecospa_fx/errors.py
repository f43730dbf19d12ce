"""The exceptions of ecospa_fx: one small tree under `EcoSpaError`."""


class EcoSpaError(Exception):
    """Raised, as one of its subclasses, for everything that ecospa_fx refuses to do."""


class CaptureError(EcoSpaError):
    """Raised when a model cannot be captured as a graph, or its graph computes something else."""


class BackwardError(CaptureError):
    """Raised when a graph would not train some parameters as the model does."""


class InputError(EcoSpaError):
    """Raised when a call does not fit the capture: other inputs, or a size that capture had to fix."""


class SizeError(InputError):
    """Raised when a call has a size that differs from the one that the capture had to fix.

    Attributes:
        one: whether one of the two sizes is 1, which captures always tell apart.
    """

    def __init__(self, message: str, one: bool = False) -> None:
        super().__init__(message)
        self.one = one


class AnalysisError(EcoSpaError):
    """Raised when labels cannot be propagated because the graph contradicts itself."""


class CoupleError(EcoSpaError):
    """Raised when a model holds no couples, so that nothing can be removed from it."""


class GradientError(EcoSpaError):
    """Raised when gradients are missing, misnamed, of the wrong shape, NaN or infinite."""


class ScoreError(EcoSpaError):
    """Raised when a score is unknown, registered twice, lacks what it needs, or gives no finite numbers."""


class PlanError(EcoSpaError):
    """Raised when a ratio or target size is out of reach, or when a plan does not fit the model."""


class ScheduleError(EcoSpaError):
    """Raised when a schedule is malformed, does not fit a checkpoint, or ranks do not agree on a round."""


class RewriteError(EcoSpaError):
    """Raised when a node of the graph cannot take its smaller shape; nothing has changed by then."""


class RepairError(EcoSpaError):
    """Raised when weights cannot be fitted to make up for removed units; nothing has changed by then."""


class VerifyError(EcoSpaError):
    """Raised when the compiled model and the masked model differ by more than round-off."""


class OptimizerError(EcoSpaError):
    """Raised when an optimizer cannot follow: it does not hold the parameters, or its kind is refused."""


class OptimizerStateError(OptimizerError):
    """Raised when an entry of an optimizer's state cannot be matched with the axes of its parameter."""


class NativeError(EcoSpaError):
    """Raised when no config of a model's own class says the widths of the smaller model."""


class LoadError(EcoSpaError):
    """Raised when a saved file is missing, damaged or made for another model."""


class RuleError(EcoSpaError):
    """Raised when an op rule is registered twice, or breaks the contract between rules and engine."""
