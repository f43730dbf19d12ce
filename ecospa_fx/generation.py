"""Generation: transformers' own loop over the compiled graph, and caches that shrink with their heads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ecospa_fx.errors import CaptureError
from ecospa_fx.program import Program
from ecospa_fx.signature import state_leaves
from ecospa_fx.sizes import static


@contextlib.contextmanager
def in_place_of_forward(model: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling ``model`` calls ``run``; what inspects its signature sees the original one."""

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


@contextlib.contextmanager
def original_forward(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` runs its own code again."""
    replaced = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if replaced is not None:
            model.forward = replaced


def with_dense_caches(named: Mapping[str, Any], programs: Iterable[Program]) -> dict[str, Any]:
    """The same call with caches as wide as before anything was removed, for one more capture.

    Args:
        named: a call's arguments; its caches came out of the shrunk model.
        programs: what has been captured; the one that returns such a cache tells its dense widths.

    Raises:
        CaptureError: no program returns such a cache.
    """
    leaves, tree = pytree.tree_flatten(dict(named))
    flags = state_leaves(tree)
    tensors = [i for i, flag in enumerate(flags) if flag and isinstance(leaves[i], torch.Tensor)]
    if not tensors:
        return dict(named)
    dense = next((found for p in programs if len(found := _cache_values(p)) == len(tensors)), None)
    if dense is None:
        raise CaptureError(
            "the call brings a cache of unknown dense widths; call the model once without a cache first"
        )
    for i, value in zip(tensors, dense, strict=True):
        sizes = [
            h if static(n) is None else static(n) for n, h in zip(value.shape, leaves[i].shape, strict=True)
        ]
        leaves[i] = leaves[i].new_zeros(sizes)
    filled: dict[str, Any] = pytree.tree_unflatten(leaves, tree)
    return filled


def _cache_values(program: Program) -> list[torch.Tensor]:
    """Captured tensors of the cache that a program returns."""
    output = next(n for n in program.graph.nodes if n.op == "output")
    flat = pytree.tree_leaves(output.args[0])
    shown = zip(flat, program.state_out, strict=False)
    values = [n.meta.get("val") for n, flag in shown if flag and isinstance(n, torch.fx.Node)]
    return [v for v in values if isinstance(v, torch.Tensor)]
