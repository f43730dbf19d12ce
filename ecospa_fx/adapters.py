"""Adapters: what low-rank fine-tuning adds to weights goes into them, in the smaller model too."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import RewriteError


def merge_adapters(compiled: CompiledModel) -> CompiledModel:
    """A compiled model of the base model's class, with the adapters merged into its weights.

    What has been removed stays removed, what was frozen stays frozen. Nothing of ``compiled`` changes. For
    a moment it takes the memory of the dense base model.

    Args:
        compiled: a compiled ``peft`` model: whatever has ``merge_and_unload``.

    Returns:
        The merged model, with parameters of its own. Like any other it can be saved, loaded into a fresh
        base model, or turned into a plain one by ``to_native``.

    Raises:
        RewriteError: the model has no adapters to merge, or merging makes weights that it did not have.
    """
    source = copy.deepcopy(compiled.source)
    if not hasattr(source, "merge_and_unload"):
        raise RewriteError(
            f"{type(source).__name__} has no merge_and_unload(): pass what compile() made of a peft model"
        )
    former = {id(p): n for n, p in source.named_parameters(remove_duplicate=False)}
    merged: nn.Module = source.merge_and_unload()
    names = _names(merged, former)
    _make_dense(merged, names, compiled)
    result = CompiledModel(merged)
    result.carry_out(compiled.removal.renamed(names))
    return result


def _names(merged: nn.Module, former: Mapping[int, str]) -> dict[str, str]:
    """What each parameter of the merged model was called."""
    held = dict(merged.named_parameters(remove_duplicate=False))
    new = [n for n, p in held.items() if id(p) not in former]
    if new:
        raise RewriteError(f"merging made parameters that the adapted model does not have: {', '.join(new)}")
    return {n: former[id(p)] for n, p in held.items()}


def _make_dense(merged: nn.Module, names: Mapping[str, str], compiled: CompiledModel) -> None:
    """Give every parameter its dense shape again, with zeros where entries are gone."""
    with torch.no_grad():
        for name, param in merged.named_parameters():
            mask = compiled.kept_mask(names[name]).to(param.device)
            dense = torch.zeros(mask.shape, dtype=param.dtype, device=param.device)
            param.data = dense.masked_scatter(mask, param.detach())
            param.grad = None
