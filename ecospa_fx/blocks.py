"""Blocks: modules of the model that are called for their part of the graph.

So whatever acts on a module's call (hooks, ``fully_shard``, checkpointing, ``block.compile()``) acts on them.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from types import MethodType
from typing import Any

from torch import fx, nn

from ecospa_fx.errors import CaptureError
from ecospa_fx.twin import ALL_HOOKS

STAGE = "_ecospa_stage"
"""The keyword by which a block is told to run a part of a graph in place of its own forward."""
_WRAPPED = ("_checkpoint_wrapped_module", "_orig_mod")  # CheckpointWrapper, torch.compile
_STACKS = (nn.ModuleList, nn.Sequential)


class Stage:
    """One call of a block.

    It is no dataclass, for ``fully_shard`` looks for tensors in those among a module's arguments.

    Args:
        table: the dict of submodules in which the block lies, or what the user has wrapped around it.
        leaf: its key there.
        module: the graph of the call.
        places: where the tensors lie that the graph takes ahead of the values from outside.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        leaf: str,
        module: fx.GraphModule,
        places: tuple[tuple[Mapping[str, Any], str], ...],
    ) -> None:
        self.table, self.leaf, self.module, self.places = table, leaf, module, places

    def run(self, *values: Any) -> Any:
        """What the block computes."""
        return self.module.forward(*[table[key] for table, key in self.places], *values)


def through(stage: Stage, *values: Any) -> Any:
    """Call a block for its part of a graph; hooks see ``values`` as its arguments."""
    return stage.table[stage.leaf](*values, **{STAGE: stage})


def callable_for_parts(block: nn.Module) -> None:
    """Let ``forward`` run a part of a graph if it is called for one; otherwise it does what it did.

    It stays a bound method, so that a deep copy of the block gets a method of its own.
    """
    if "forward" in block.__dict__:
        return  # done before

    @functools.wraps(type(block).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stage = kwargs.pop(STAGE, None)
        if stage is None:
            return type(self).forward(self, *args, **kwargs)
        if self.training and getattr(
            self, "gradient_checkpointing", False
        ):  # as layers of transformers have it
            return self._gradient_checkpointing_func(stage.run, *args)  # type: ignore[operator]
        return stage.run(*args)

    forward._runs_parts = True  # type: ignore[attr-defined]
    block.forward = MethodType(forward, block)


def find_blocks(model: nn.Module, names: Collection[str] | None) -> tuple[str, ...]:
    """Names of the modules that are called for their part of the graph.

    Args:
        model: the module.
        names: those that the user wants; None for the modules that repeat: the outermost ones with
            parameters and modules of their own in a ``ModuleList`` or ``Sequential``.

    Raises:
        CaptureError: a name is none of a module, or names a module within another one.
    """
    if names is None:
        return tuple(_repeated(model, ""))
    known = dict(model.named_modules(remove_duplicate=False))
    wrong = [n for n in names if not n or n not in known]
    if wrong:
        raise CaptureError(f"blocks: the model has no module {', '.join(map(repr, wrong))}")
    inner = [(n, o) for n in names for o in names if n.startswith(f"{o}.")]
    if inner:
        raise CaptureError(f"blocks: {inner[0][0]!r} lies within {inner[0][1]!r}; name one of both")
    return tuple(n for n in names if _can_be_called(known[n]))


def blocks_within(module: nn.Module, model: nn.Module, names: Collection[str]) -> tuple[str, ...]:
    """Names that blocks of a model have within one of its modules."""
    known = {id(unwrapped(model, n)) for n in names}
    return tuple(n for n, m in module.named_modules() if id(m) in known)


def _repeated(module: nn.Module, prefix: str) -> Iterator[str]:
    for leaf, child in module.named_children():
        child = _inner(child)
        if isinstance(module, _STACKS) and _is_block(child):
            yield from [f"{prefix}{leaf}"] if _can_be_called(child) else []
        else:
            yield from _repeated(child, f"{prefix}{leaf}.")


def _is_block(module: nn.Module) -> bool:
    has = any(True for _ in module.children()) and any(True for _ in module.parameters())
    return has and not isinstance(module, _STACKS)


def _can_be_called(module: nn.Module) -> bool:
    """Whether its forward is its class's: one that someone has replaced cannot be told to run a part."""
    forward = module.__dict__.get("forward")
    return forward is None or hasattr(forward, "_runs_parts")


def _inner(module: Any) -> Any:
    """A module without what checkpointing and compilation wrap around it."""
    while name := next((n for n in _WRAPPED if n in module._modules), None):
        module = module._modules[name]
    return module


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers add to it.

    >>> plain_name("layers.0._checkpoint_wrapped_module.up.weight")
    'layers.0.up.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def unwrapped(model: nn.Module, path: str) -> nn.Module:
    """The submodule of the original name ``path``, by whatever modules on the way are wrapped."""
    for leaf in plain_name(path).split(".") if path else ():
        model = _inner(model._modules[leaf])
    return model


def block_place(model: nn.Module, path: str) -> tuple[Mapping[str, Any], str]:
    """The dict of submodules that holds a block, and its key there; wrappers are put there, too."""
    parent, _, leaf = path.rpartition(".")
    return unwrapped(model, parent)._modules, leaf


@contextlib.contextmanager
def bare(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, blocks are what they were: no hooks, no wrappers, no checkpointing, no compilation.

    Captures trace the blocks' own code; what the user puts around a block acts when the compiled model
    calls it.
    """
    with contextlib.ExitStack() as undo:
        for name in names:
            table: Any
            table, leaf = block_place(model, name)
            block = _inner(table[leaf])
            undo.callback(table.__setitem__, leaf, table[leaf])
            table[leaf] = block
            changed: dict[str, Any] = {hooks: OrderedDict() for hooks in ALL_HOOKS} | {
                "_compiled_call_impl": None,
                "_forward_hooks": _recorders(block),
            }
            if "gradient_checkpointing" in block.__dict__:
                changed["gradient_checkpointing"] = False
            for attribute, value in changed.items():
                undo.callback(_put_back, block, attribute, block.__dict__.get(attribute, _NONE))
                block.__dict__[attribute] = value
        yield


def _recorders(block: nn.Module) -> OrderedDict[int, Any]:
    """Hooks by which a transformers model records hidden states and attentions; else they do nothing."""
    hooks: dict[int, Any] = block.__dict__.get("_forward_hooks") or {}
    return OrderedDict((k, h) for k, h in hooks.items() if getattr(h, "__module__", "") == _RECORDERS)


_RECORDERS = "transformers.utils.output_capturing"
_NONE = object()


def _put_back(block: nn.Module, attribute: str, value: Any) -> None:
    if attribute == "_forward_hooks":  # recorders that the model has put there meanwhile stay
        value.update(_recorders(block))
    if value is _NONE:
        block.__dict__.pop(attribute, None)
    else:
        block.__dict__[attribute] = value


def has_hooks(block: nn.Module) -> bool:
    """Whether a user has put anything on the block's call."""
    own = len(_recorders(block))
    return sum(len(block.__dict__.get(name) or ()) for name in ALL_HOOKS) > own


class Blocks(Mapping[str, nn.Module]):
    """Blocks by name, as they lie in the model: hooks, wrappers and ``fully_shard`` act on their calls.

    Attributes:
        flat: why other modules that repeat are not called: their operators run without them.
    """

    def __init__(self, model: nn.Module, names: Collection[str], flat: Mapping[str, str]) -> None:
        self._model, self.flat = model, dict(flat)
        self._names = [n for n in names if n not in flat]

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(f"{name!r} is no block: {self.flat.get(name, 'it does not repeat')}")
        table, leaf = block_place(self._model, name)
        found: nn.Module = table[leaf]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
