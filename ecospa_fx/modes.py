"""Training and evaluation mode of every module, kept over a piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Every module is afterwards in the mode in which it was."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
