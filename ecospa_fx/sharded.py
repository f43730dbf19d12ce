"""Tensors of which every rank holds a part."""

from __future__ import annotations

from typing import Any, cast

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, as ``fully_shard`` makes them (which need not be imported for this)."""
    return type(tensor).__name__ == "DTensor" or type(tensor.detach()).__name__ == "DTensor"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; of a sharded one every rank must ask for it."""
    return cast(torch.Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor
