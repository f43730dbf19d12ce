"""Oracles that prove an op rule by brute force against torch itself."""

from ecospa_fx.oracles.drop import drop
from ecospa_fx.oracles.roll import roll
from ecospa_fx.oracles.trial import Operand, Sample

__all__ = ["Operand", "Sample", "drop", "roll"]
