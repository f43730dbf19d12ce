"""Parts: submodules that are called by themselves, as an encoder is before a text is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from ecospa_fx.blocks import blocks_within
from ecospa_fx.removal import Removal
from ecospa_fx.signature import bind
from ecospa_fx.signatures import Signatures

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel


class Parts:
    """Graphs of submodules of a compiled model, captured when they are first called."""

    def __init__(self, compiled: CompiledModel) -> None:
        self._compiled = compiled
        self._known: dict[int, tuple[Signatures, Removal]] = {}

    def run(self, module: nn.Module) -> Callable[..., Any]:
        """What runs a submodule by itself, as small as it is within the model."""
        compiled = self._compiled
        first = {id(p): n for n, p in compiled.source.named_parameters()}
        names = {n: first[id(p)] for n, p in module.named_parameters()}
        signatures, removal = self._known.get(id(module), (None, None))
        if signatures is None or removal is not compiled.removal:
            held = module.named_parameters(remove_duplicate=False)
            shapes = {n: compiled.dense_shapes[first[id(p)]] for n, p in held}
            inside = blocks_within(module, compiled.source, compiled.signatures.blocks)
            signatures = Signatures(module, module, shapes, compiled.signatures.check, inside)
            self._known[id(module)] = signatures, compiled.removal
        inner = compiled.removal.renamed(names)

        def run(*args: Any, **kwargs: Any) -> Any:
            signature, leaves = signatures.of(bind(module.forward, args, kwargs), inner)
            return signature.run(leaves)

        return run
