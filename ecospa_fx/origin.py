"""Origin: whether a model comes from transformers. A plain one is told without loading that library."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

from torch import nn


class Exporter(NamedTuple):
    """Modules of transformers' own exporter: that to graphs, and what all its exporters share."""

    dynamo: Any
    utils: Any


def exporter() -> Exporter | None:
    """Transformers' own exporter, if it has one.

    Before 5.23 it loads every model that it patches; what that warns of is no concern of this one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from transformers.exporters import exporter_dynamo, utils
        except ImportError:
            return None
    return Exporter(exporter_dynamo, utils)


def holds_pretrained(model: nn.Module) -> bool:
    """Whether a model of transformers is among the modules."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and any(isinstance(m, library.PreTrainedModel) for m in model.modules())


def holds_parts(model: nn.Module) -> bool:
    """Whether the class of any module, its own or one that it is made from, comes from transformers."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    return any("transformers" in base.__module__ for base in classes)
