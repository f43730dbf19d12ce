"""Tensors of which every rank holds a part."""

from __future__ import annotations

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, as ``fully_shard`` makes them (which need not be imported for this)."""
    return type(tensor).__name__ == "DTensor" or type(tensor.detach()).__name__ == "DTensor"
