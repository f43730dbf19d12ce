"""Caches of transformers models: what a graph takes and returns, and what the caller holds.

A graph knows one kind of cache, that which grows with every token. Other kinds (with a window, or with room
for all tokens from the start) are read into it before a call, and its new tokens are written back after it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from ecospa_fx.cache_layers import attention_layers, grown, is_cache
from ecospa_fx.errors import CaptureError
from ecospa_fx.origin import exporter
from ecospa_fx.program import Program
from ecospa_fx.signature import state_leaves
from ecospa_fx.sizes import static

_ROOM = 7  # tokens: unlike any width of a small model


def plain_arguments(named: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """A call's arguments as a graph takes them, and the caches that the caller holds."""
    held = [value for value in named.values() if is_cache(value)]
    if held:
        _register()
    return {name: plain(value) if is_cache(value) else value for name, value in named.items()}, held


@functools.cache
def _register() -> None:
    """Let the tensors of plain caches be seen, also before the first capture."""
    from transformers import cache_utils

    if own := exporter():
        own.dynamo.register_pytree_node(cache_utils.DynamicCache)
        own.dynamo.register_pytree_node(cache_utils.EncoderDecoderCache)


def plain_output(output: Any, held: list[Any]) -> Any:
    """An output as the caller expects it: the cache that came in, with the new tokens in it.

    Args:
        output: of a graph, in the model's own type.
        held: caches of the call.
    """
    if not any(is_cache(v) for v in _entries(output)):
        return output
    remaining = iter(held)

    def returned(value: Any) -> Any:
        if not is_cache(value):
            return value
        mine = next(remaining, None)
        return _returned(value) if mine is None else _deliver(value, mine)

    return pytree.tree_map(returned, output, is_leaf=is_cache)


def _entries(output: Any) -> Iterable[Any]:
    if isinstance(output, Mapping):
        return output.values()
    return output if isinstance(output, (list, tuple)) else (output,)


def plain(cache: Any) -> Any:
    """The same cache with layers that hold all tokens; those that a window has dropped are zeros.

    No query reads them: the mask of such a layer hides what is outside of the window.
    """
    from transformers import cache_utils

    if isinstance(cache, cache_utils.EncoderDecoderCache):
        both = cache_utils.EncoderDecoderCache(
            plain(cache.self_attention_cache), plain(cache.cross_attention_cache)
        )
        both.is_updated = dict(cache.is_updated)
        return both
    twin = cache_utils.DynamicCache()
    if cache.layers:
        filled = _filled(cache)
        twin.layers = [_plain_layer(layer, filled) for layer in cache.layers]
        twin.layer_class_to_replicate = None
    return twin


def _filled(cache: Any) -> int:
    """Tokens in the layers that have room for all; one look for all layers, for it waits for a GPU."""
    from transformers.cache_utils import StaticLayer

    layers = [x for x in cache.layers if type(x) is StaticLayer and x.is_initialized]
    return int(layers[0].cumulative_length) if layers else 0


def _plain_layer(layer: Any, filled: int) -> Any:
    from transformers import cache_utils

    if type(layer) not in attention_layers():
        return layer
    keys, values = layer.keys, layer.values
    if not layer.is_initialized:
        return cache_utils.DynamicLayer()  # type: ignore[no-untyped-call]
    if type(layer) is cache_utils.StaticLayer:
        keys, values = keys[:, :, :filled], values[:, :, :filled]
    else:
        gone = getattr(layer, "cumulative_length_int", layer.get_seq_length()) - keys.shape[-2]
        keys, values = (functional.pad(t, (0, 0, gone, 0)) for t in (keys, values))
    return grown(keys, values)


def _returned(cache: Any) -> Any:
    """The cache that a graph returns: every layer holds all tokens, whatever its class."""
    from transformers import cache_utils

    if isinstance(cache, cache_utils.EncoderDecoderCache):
        _returned(cache.self_attention_cache)
        _returned(cache.cross_attention_cache)
    else:
        cache.layers = [_returned_layer(layer) for layer in cache.layers]
    return cache


def _returned_layer(layer: Any) -> Any:
    from transformers.cache_utils import DynamicLayer

    if type(layer) is DynamicLayer or type(layer) not in attention_layers() or not layer.is_initialized:
        return layer
    return grown(layer.keys, layer.values)


def _deliver(result: Any, held: Any) -> Any:
    """Put what a graph returned into the caller's cache, which keeps its identity."""
    from transformers import cache_utils

    if isinstance(held, cache_utils.EncoderDecoderCache):
        _deliver(result.self_attention_cache, held.self_attention_cache)
        _deliver(result.cross_attention_cache, held.cross_attention_cache)
        held.is_updated = dict(result.is_updated)
        return held
    filled = _filled(held)
    for i, layer in enumerate(result.layers):
        mine = held.layers[i] if i < len(held.layers) else None
        if type(mine) is cache_utils.StaticLayer:
            _fill(mine, layer, filled)
        elif mine is None:
            held.layers.append(_returned_layer(layer))
        elif type(mine) is cache_utils.DynamicSlidingWindowLayer and layer.is_initialized:
            _slide(mine, layer)
        else:
            held.layers[i] = _returned_layer(layer)
    return held


def _slide(mine: Any, layer: Any) -> None:
    """Let a layer with a window hold the last tokens: all but one of the window, for the next is in it."""
    if not mine.is_initialized:
        mine.lazy_initialization(layer.keys, layer.values)
    mine.cumulative_length = layer.keys.shape[-2]
    first = 0 if mine.record_past else max(0, layer.keys.shape[-2] - mine.sliding_window + 1)
    mine.keys, mine.values = layer.keys, layer.values
    if first:  # a view would keep all tokens
        mine.keys, mine.values = mine.keys[:, :, first:].clone(), mine.values[:, :, first:].clone()


def _fill(mine: Any, layer: Any, filled: int) -> None:
    """Write the tokens that are new into a layer that has room for all; its widths are those of the graph."""
    if layer.is_initialized and layer.keys.shape[-2] > filled:
        mine.update(layer.keys[:, :, filled:], layer.values[:, :, filled:])


def uncompiled(cache: Any) -> Any:
    """The same cache, of which ``generate`` does not think that ``torch.compile`` must run around it.

    It would make masks for layers with windows, and compile the model's own code. Static layers with windows
    become dynamic ones.
    """
    from transformers import cache_utils

    if isinstance(cache, cache_utils.EncoderDecoderCache):
        uncompiled(cache.self_attention_cache)
        uncompiled(cache.cross_attention_cache)
        return cache
    for i, layer in enumerate(cache.layers):
        if type(layer) is cache_utils.StaticLayer:
            layer.is_compileable = False
        elif type(layer) is cache_utils.StaticSlidingWindowLayer:
            cache.layers[i] = _windowed(layer)
    return cache


def _windowed(layer: Any) -> Any:
    """A static layer with a window as a dynamic one, which keeps as many tokens."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    twin: Any = DynamicSlidingWindowLayer(layer.max_cache_len)
    if layer.is_initialized:
        count = layer.cumulative_length_int
        held = grown(*(t[:, :, : min(count, layer.max_cache_len)] for t in (layer.keys, layer.values)))
        _slide(twin, held)
        twin.cumulative_length = count
    return twin


def with_plain_states(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same call with caches of its own that do not remember how they were computed, for a capture."""
    leaves, tree = pytree.tree_flatten(dict(named))
    flags = state_leaves(tree)
    held = [f and isinstance(x, torch.Tensor) for x, f in zip(leaves, flags, strict=True)]
    plain = [x.detach() if flag else x for x, flag in zip(leaves, held, strict=True)]
    result: dict[str, Any] = pytree.tree_unflatten(plain, tree)
    return result


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


def with_room(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same call with several tokens in a cache that holds one: a capture leaves its length free then."""
    found = {n: v for n, v in named.items() if is_cache(v) and v.get_seq_length() == 1}
    if not found:
        return dict(named)
    roomy = dict(named)
    for name, cache in found.items():
        inner = getattr(cache, "self_attention_cache", cache)
        mask = "attention_mask" if inner is cache else "decoder_attention_mask"
        roomy[name] = twin = plain(cache)
        inner = getattr(twin, "self_attention_cache", twin)
        for layer in inner.layers:
            if type(layer) in attention_layers() and layer.is_initialized:
                layer.keys, layer.values = (t.repeat(1, 1, _ROOM, 1) for t in (layer.keys, layer.values))
        held = named.get(mask)
        if isinstance(held, torch.Tensor) and held.dim() == 2:
            roomy[mask] = torch.cat([held[:, :1]] * (_ROOM - 1) + [held], 1)
    return roomy


def _cache_values(program: Program) -> list[torch.Tensor]:
    """Captured keys and values of the cache that a program returns."""
    output = next(n for n in program.graph.nodes if n.op == "output")
    flat = pytree.tree_leaves(output.args[0])
    shown = zip(flat, program.state_out, strict=False)
    values = [n.meta.get("val") for n, flag in shown if flag and isinstance(n, torch.fx.Node)]
    return [v for v in values if isinstance(v, torch.Tensor) and v.dim() > 1]
