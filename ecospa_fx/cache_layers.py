"""Layers of the caches of transformers models."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch


def is_cache(value: Any) -> bool:
    """Whether ``value`` is a cache of a transformers model."""
    module = sys.modules.get("transformers.cache_utils")
    return module is not None and isinstance(value, module.Cache)


@functools.cache
def attention_layers() -> tuple[type, ...]:
    """Kinds of layers that hold keys and values."""
    from transformers import cache_utils as c

    return c.DynamicLayer, c.DynamicSlidingWindowLayer, c.StaticLayer, c.StaticSlidingWindowLayer


def grown(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """A layer that holds these, and grows with every token."""
    from transformers.cache_utils import DynamicLayer

    layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.dtype, layer.device = keys.dtype, keys.device
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    return layer
