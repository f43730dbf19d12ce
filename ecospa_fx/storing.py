"""What a compiled model can be written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
from torch import nn

from ecospa_fx.errors import NativeError
from ecospa_fx.fsdp import shards
from ecospa_fx.sharded import whole
from ecospa_fx.storage import save_files, unique_tensors

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


class Storing:
    """The part of a compiled model that writes it to files, or to a plain model."""

    def save(self, path: str | Path) -> None:
        """Write weights and removal into a folder, for :func:`load`.

        Of a sharded model all ranks must call it; the first one gathers whole weights on the CPU and writes.
        """
        compiled = _compiled(self)
        if not shards(compiled):
            save_files(path, unique_tensors(compiled), compiled.removal)
            return
        tensors = {}
        for name, tensor in unique_tensors(compiled).items():
            full = whole(tensor.detach())
            if not dist.get_rank():
                tensors[name] = full.cpu()
        if not dist.get_rank():
            save_files(path, tensors, compiled.removal)
        dist.barrier()

    def save_pretrained(self, path: str | Path) -> None:
        """Write a transformers model with its config into a folder, for :func:`from_pretrained`.

        Raises:
            LoadError: the model's class is not one of transformers; use :meth:`save`.
        """
        from ecospa_fx.pretrained import save_config

        save_config(_compiled(self).source, path)
        self.save(path)

    def to_native(self) -> nn.Module:
        """A plain model of the original class, with a changed config and parameters of its own.

        Raises:
            NativeError: no config says these widths, or the model is sharded.
        """
        from ecospa_fx.passes.native import native

        if shards(_compiled(self)):
            raise NativeError("the model is sharded; save() it, and load() it in one process")
        return native(_compiled(self))

    def __reduce__(self) -> Any:
        raise TypeError(
            "a compiled model holds graphs that cannot be pickled; use compiled.save(path), or "
            "torch.save(compiled.state_dict()) for the weights alone"
        )


def _compiled(model: Storing) -> CompiledModel:
    return cast("CompiledModel", model)
