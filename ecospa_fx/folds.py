"""Folds: flat inputs and outputs of a call, for caches without a walk through all that they hold.

A cache has as many tensors as the model has layers, and one token is little work: what is the same at every
call is found once. What is not known here goes the way that ``torch.export`` has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ecospa_fx.cache_layers import attention_layers, grown, is_cache

Flat = tuple[list[Any], tuple[Any, ...]]
_ordered: dict[Any, bool] = {}
"""Structures of caches → whether their tensors lie in the order of a capture."""


def flat(named: Mapping[str, Any]) -> Flat:
    """Flat inputs of a call, in the order of a capture, and what tells how they make up the call."""
    leaves: list[Any] = []
    structure: list[Any] = []
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            found: Flat = ([value], ())
        else:
            found = _flat_cache(value) or _walked(value)
        leaves += found[0]
        structure.append((name, found[1]))
    return leaves, tuple(structure)


def _walked(value: Any) -> Flat:
    leaves, tree = pytree.tree_flatten(value)
    return leaves, (str(tree),)


def _flat_cache(cache: Any) -> Flat | None:
    """Keys and values of a cache whose layers all grow with every token."""
    if not is_cache(cache):
        return None
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(cache) is not DynamicCache or any(type(x) is not DynamicLayer for x in cache.layers):
        return None
    layers: list[Any] = cache.layers
    filled = tuple(layer.is_initialized for layer in layers)
    leaves = [t for x in layers if x.is_initialized for t in (x.keys, x.values)]
    settings = tuple((k, v) for k, v in vars(cache).items() if v is None or isinstance(v, (int, str, type)))
    structure = (DynamicCache, filled, settings)
    if structure not in _ordered:
        walked = pytree.tree_leaves(cache)
        same = len(walked) == len(leaves)
        _ordered[structure] = same and all(a is b for a, b in zip(walked, leaves, strict=True))
    return (leaves, structure) if _ordered[structure] else None


def assembly(spec: pytree.TreeSpec) -> Callable[[Sequence[Any]], Any]:
    """What makes a model's own output of the flat one."""
    blanks = [torch.empty(0, device="meta") for _ in range(spec.num_leaves)]
    places = {id(blank): i for i, blank in enumerate(blanks)}
    outline = _outline(spec)
    parts = pytree.tree_leaves(pytree.tree_unflatten(list(blanks), spec), is_leaf=is_cache)
    makers = [_maker(part, places) for part in parts]
    if outline.num_leaves != len(makers) or None in makers or outline is spec:
        return lambda flat: pytree.tree_unflatten(flat, spec)
    return lambda flat: pytree.tree_unflatten([make(flat) for make in makers], outline)  # type: ignore[misc]


def _outline(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure with caches as leaves."""
    children = spec.children()
    below = [_leaf() if _holds_cache(c) else _outline(c) for c in children]
    changed = any(a is not b for a, b in zip(children, below, strict=True))
    return pytree.TreeSpec(spec.type, spec.context, below) if changed else spec


def _holds_cache(spec: pytree.TreeSpec) -> bool:
    return isinstance(spec.type, type) and spec.type.__name__ == "DynamicCache"


def _leaf() -> pytree.TreeSpec:
    return pytree.tree_structure(0)


def _maker(part: Any, places: Mapping[int, int]) -> Callable[[Sequence[Any]], Any] | None:
    """One entry of the output: a tensor, or a cache whose layers grow with every token."""
    if id(part) in places:
        index = places[id(part)]
        return lambda flat: flat[index]
    if not is_cache(part):
        return None
    from transformers.cache_utils import DynamicCache

    plain = type(part) is DynamicCache and all(type(x) in attention_layers() for x in part.layers)
    pairs = [(places.get(id(x.keys)), places.get(id(x.values))) for x in part.layers] if plain else []
    if not pairs or any(None in pair for pair in pairs):
        return None

    def made(flat: Sequence[Any]) -> Any:
        cache = DynamicCache()
        cache.layers = [grown(flat[k], flat[v]) for k, v in pairs]  # type: ignore[index]
        cache.layer_class_to_replicate = None
        return cache

    return made
