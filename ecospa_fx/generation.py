"""Generation: transformers' own loop over the compiled graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ecospa_fx.cache_layers import is_cache
from ecospa_fx.caches import uncompiled
from ecospa_fx.signature import speaking
from ecospa_fx.twin import FORWARD_HOOKS, twin_of

Run = Callable[..., Any]


def stand_in(model: nn.Module, run: Run, **attributes: Any) -> Any:
    """An object of the model's class, over the same tensors, whose ``forward`` is ``run``.

    The model itself is not touched, so that several threads may do so at once.

    Args:
        model: the module.
        run: called instead of its own code; what inspects its signature sees the original one.
        attributes: further attributes of the stand-in.
    """
    return twin_of(model, FORWARD_HOOKS, forward=speaking(run, model.forward), **attributes)


def generator(model: nn.Module, run: Run, part: Callable[[nn.Module], Run]) -> Any:
    """A stand-in whose ``generate`` runs the compiled graphs.

    Args:
        model: a transformers model.
        run: the compiled model.
        part: from a submodule that ``generate`` calls by itself to what runs it.
    """
    changed: dict[str, Any] = {}
    if hasattr(model, "_prepare_static_cache"):
        prepare: Any = model._prepare_static_cache

        def prepare_static_cache(*args: Any, **kwargs: Any) -> Any:
            return uncompiled(prepare(*args, **kwargs))

        changed["_prepare_static_cache"] = prepare_static_cache
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):

        def get_encoder(*args: Any, **kwargs: Any) -> Any:
            encoder = model.get_encoder(*args, **kwargs)  # type: ignore[operator]
            return stand_in(encoder, part(encoder))

        changed["get_encoder"] = get_encoder
    return stand_in(model, run, **changed)


def with_open_caches(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` whose caches are not for ``torch.compile``."""
    return {name: uncompiled(v) if is_cache(v) else v for name, v in arguments.items()}
