"""Find the coupled weight matrices of a PyTorch model and remove rows and columns of them together."""

from ecospa_fx.errors import EcoSpaError

__all__ = ["EcoSpaError", "__version__"]

__version__ = "0.1.0"
