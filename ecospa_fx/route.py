"""Routes: from the arguments of a call to its signature, in code that ``torch.compile`` can follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ecospa_fx.cache_layers import is_cache
from ecospa_fx.signature import POSITIONAL
from ecospa_fx.signatures import Signature
from ecospa_fx.sizes import static


@dataclass(frozen=True, eq=False)
class Route:
    """One way to pass the arguments of one signature.

    Attributes:
        signature: what runs.
        positional: names of the arguments that go by position.
        order: names of all arguments that count, in the order of the graph.
        expected: what each flat input must be: dtype and sizes (None for any but 1) of a tensor, or a value.
    """

    signature: Signature
    positional: tuple[str, ...]
    order: tuple[str, ...]
    expected: tuple[Any, ...]

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """Flat inputs of the graph; None where the call belongs to another signature."""
        named = {**dict(zip(self.positional, args, strict=True)), **kwargs}
        if [n for n in named if named[n] is not None and n not in self.order]:
            return None
        flat = pytree.tree_leaves({name: named.get(name) for name in self.order})
        if len(flat) != len(self.expected):
            return None
        for leaf, want in zip(flat, self.expected, strict=True):
            if not _fits(leaf, want):
                return None
        return flat


def _fits(leaf: Any, want: Any) -> bool:
    if not isinstance(want, tuple):
        return bool(leaf == want)
    dtype, sizes = want
    if not isinstance(leaf, torch.Tensor) or leaf.dtype != dtype or leaf.dim() != len(sizes):
        return False
    for have, size in zip(leaf.shape, sizes, strict=True):
        if (have == 1) if size is None else (have != size):
            return False
    return True


def route(
    signature: Signature, forward: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
) -> Route | None:
    """The route of a call, or None for one that only Python can follow: with caches, or prepared inputs."""
    kinds = inspect.signature(forward).parameters
    if signature.program.prepare is not dict or any(
        n.startswith(POSITIONAL) or is_cache(v) for n, v in named.items()
    ):
        return None
    leaves = pytree.tree_leaves(dict(named))
    values = [n.meta.get("val") for n in signature.program.graph.nodes if n.op == "placeholder"]
    if len(leaves) != len(values):
        return None
    expected = tuple(_expected(leaf, value) for leaf, value in zip(leaves, values, strict=True))
    return Route(signature, tuple(kinds)[: len(args)], tuple(named), expected)


def _expected(leaf: Any, value: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and isinstance(value, torch.Tensor):
        return leaf.dtype, tuple(static(n) for n in value.shape)
    return leaf


class Routes:
    """How the calls so far have passed their arguments, for calls under ``torch.compile``.

    Args:
        forward: of the original module.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._known: dict[tuple[Any, ...], list[Route]] = {}

    def remember(
        self,
        signature: Signature,
        training: bool,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        named: Mapping[str, Any],
    ) -> None:
        """Note a call of one more signature."""
        routes = self._known.setdefault((training, len(args), tuple(kwargs)), [])
        if all(r.signature is not signature for r in routes):
            found = route(signature, self._forward, args, named)
            routes.extend([found] if found is not None else [])

    def find(
        self, training: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Signature, list[Any]] | None:
        """The signature of a call and its flat inputs, if one such call has been noted."""
        for way in self._known.get((training, len(args), tuple(kwargs)), ()):
            leaves = way.leaves(args, kwargs)
            if leaves is not None:
                return way.signature, leaves
        return None
