"""Once: blocks that do the same are not followed one by one while a model is traced.

A call of a block is like one before it where all that its code can see is equal: classes, attributes, kinds
of tensors, arguments, modes. Attributes may differ that the code has not read (the number of a layer). Two
calls are followed; from the third on an operator stands for the call, and :mod:`~ecospa_fx.passes.inline`
writes its nodes. What is not seen to be alike is followed.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ecospa_fx.alike import PLAIN, Place, differences, expression, kind, state_of
from ecospa_fx.blocks import find_blocks, unwrapped
from ecospa_fx.repeats import OUTPUTS, TracedCall, UnevenError, enter, leave, like, repeat

_FEWEST = 3


class _Unknown(Exception):
    """A value of which the trace cannot tell all that code may see."""


class Repeats:
    """Calls of blocks during one capture.

    Args:
        model: the module that is captured, as it is traced.

    Attributes:
        calls: every call that was followed and may be repeated, by its number.
        used: whether anything was marked in the graph.
        names: of every block, the first name of each of its tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[int, TracedCall] = {}
        self.used = False
        self._groups = [group for group in _alike(model) if len(group) >= _FEWEST]
        self.names, self._ties = _owned(model, [name for group in self._groups for name in group])
        self._watched = {place for group in self._groups for place in _varied(group)}
        self._opaque: set[tuple[type, str]] = set()
        self._read: set[tuple[int, str]] = set()
        self._busy = False

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Inside, calls of the blocks go through :meth:`call`."""
        with contextlib.ExitStack() as stack:
            for group in self._groups:
                for cls, name in {(type(_at(b, p)), n) for b in group.values() for p, n in self._watched}:
                    stack.enter_context(self._watching(cls, name))
                for name, block in group.items():
                    stack.enter_context(self._replaced(name, block))
            stack.callback(lambda: [OUTPUTS.pop(number, None) for number in self.calls])
            yield

    @contextlib.contextmanager
    def _watching(self, cls: type, name: str) -> Iterator[None]:
        """Note reads of an attribute."""
        if cls is type(None) or hasattr(cls, name):  # a default of the class's: reads are not told apart
            self._opaque.add((cls, name))
            yield
            return

        def read(module: nn.Module) -> Any:
            self._read.add((id(module), name))
            if name not in module.__dict__:
                raise AttributeError(name)
            return module.__dict__[name]

        setattr(cls, name, property(read, lambda m, value: m.__dict__.__setitem__(name, value)))
        try:
            yield
        finally:
            delattr(cls, name)

    @contextlib.contextmanager
    def _replaced(self, name: str, block: nn.Module) -> Iterator[None]:
        own, original = block.__dict__.get("forward"), block.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.call(name, block, original, args, kwargs)

        block.__dict__["forward"] = forward
        try:
            yield
        finally:
            block.__dict__.pop("forward")
            if own is not None:
                block.__dict__["forward"] = own

    def call(
        self, name: str, block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Follow a call of a block, or write down that it repeats another.

        Args:
            name: name of the block.
            block: the block.
            forward: what it does.
            args: of the call.
            kwargs: of the call.
        """
        mode = get_proxy_mode()
        if mode is None or self._busy:
            return forward(*args, **kwargs)
        tensors: list[Tensor] = []
        try:
            with torch._C.DisableTorchFunction():  # the trace need not see that sizes are read here
                key = (tuple(kwargs), _seen((args, tuple(kwargs.values())), tensors), _modes())
                call = TracedCall(mode.tracer, block, name, key)
                known = [other for other in self.calls.values() if self._like(other, call)]
        except _Unknown:
            return forward(*args, **kwargs)
        if known and known[-1].equal is not None:
            return self._repeated(known[-1], block, tensors)
        call.equal = known[0].number if known else None
        return self._followed(call, forward, tensors, args, kwargs)

    def _like(self, one: TracedCall, other: TracedCall) -> bool:
        """Whether the first of two calls of one trace tells what the second does."""
        if one.tracer is not other.tracer or one.key != other.key:
            return False
        if self._ties[one.name] != self._ties[other.name]:
            return False
        found = differences(one.block, other.block)
        return found is not None and not any(self._counts(place, one) for place in found)

    def _counts(self, place: Place, call: TracedCall) -> bool:
        """Whether a call may have done what it did because of an attribute."""
        path, name = place
        hidden = (type(_at(call.block, path)), name) in self._opaque
        return hidden or place not in self._watched or place in call.read

    def _followed(
        self, call: TracedCall, forward: Callable[..., Any], tensors: list[Tensor], args: Any, kwargs: Any
    ) -> Any:
        inside = {id(t): enter(t, call.number, i) for i, t in enumerate(tensors)}
        self.used = True
        before = state_of(call.block)
        self._read.clear()
        self._busy = True
        try:
            given = [_with(v, inside) for v in (args, tuple(kwargs.values()))]
            out = forward(*given[0], **dict(zip(kwargs, given[1], strict=True)))
        finally:
            self._busy = False
        call.read = frozenset((p, n) for p, n in self._watched if (id(_at(call.block, p)), n) in self._read)
        known = {id(inside[id(t)]): -1 - i for i, t in enumerate(tensors)}
        made: list[Tensor] = []
        try:
            call.result = _structure(out, known, made)
        except _Unknown:
            made.clear()
        if not made or state_of(call.block) != before:
            return out
        OUTPUTS[call.number] = [like(t) for t in made]
        call.requires_grad = tuple(t.requires_grad for t in made)
        self.calls[call.number] = call
        return _built(call.result, tensors, [leave(t, call.number, i) for i, t in enumerate(made)])

    def _repeated(self, call: TracedCall, block: nn.Module, tensors: list[Tensor]) -> Any:
        made = repeat(tensors, [t for _, t in tensors_of(block)], call.number)
        if tuple(t.requires_grad for t in made) != call.requires_grad:
            raise UnevenError("gradients flow otherwise")
        return _built(call.result, tensors, made)


def tensors_of(block: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by all their names within a block, always in one order."""
    return [
        *block.named_parameters(remove_duplicate=False),
        *block.named_buffers(remove_duplicate=False),
    ]


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tied tensor → its first name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors_of(model)}


def _owned(
    model: nn.Module, blocks: list[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[Any, ...]]]:
    """First names of the tensors of each block; and which of them are tied, within the block or beyond."""
    first = {id(tensor): name for name, tensor in reversed(tensors_of(model))}
    total = Counter(id(tensor) for _, tensor in tensors_of(model))
    names, ties = {}, {}
    for block in blocks:
        tensors = [tensor for _, tensor in tensors_of(unwrapped(model, block))]
        inside = Counter(map(id, tensors))
        names[block] = tuple(first[id(t)] for t in tensors)
        place = {id(t): i for i, t in reversed(list(enumerate(tensors)))}
        ties[block] = tuple(place[id(t)] if inside[id(t)] == total[id(t)] else names[block][i]
                            for i, t in enumerate(tensors))  # fmt: skip
    return names, ties


def _alike(model: nn.Module) -> list[dict[str, nn.Module]]:
    """Blocks by name, in groups of one structure."""
    groups: list[dict[str, nn.Module]] = []
    for name in find_blocks(model, None):
        block = unwrapped(model, name)
        fitting = (g for g in groups if differences(next(iter(g.values())), block) is not None)
        group = next(fitting, None)
        if group is None:
            groups.append(group := {})
        group[name] = block
    return groups


def _varied(group: dict[str, nn.Module]) -> set[Place]:
    first, *others = group.values()
    return {place for other in others for place in differences(first, other) or ()}


def _at(block: nn.Module, path: str) -> Any:
    """The module within a block; None where there is none."""
    module: Any = block
    for leaf in path.split(".") if path else ():
        module = module and module._modules.get(leaf)
    return module


def _modes() -> tuple[Any, ...]:
    """What code sees without any argument."""
    kinds = ("cpu", "cuda")
    casts = [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), *casts)


def _seen(value: Any, tensors: list[Tensor]) -> Any:
    """All that code can see of an argument while it is traced, to compare; tensors are collected."""
    if isinstance(value, Tensor):
        place = next((i for i, t in enumerate(tensors) if t is value), len(tensors))
        if place == len(tensors):
            tensors.append(value)
        return ("tensor", place, kind(value))
    if type(value) is tuple:
        return ("tuple", *(_seen(v, tensors) for v in value))
    if isinstance(value, torch.SymInt):
        return ("size", expression(value))
    if type(value) in PLAIN:
        return (type(value), value)
    raise _Unknown


def _with(value: Any, instead: dict[int, Tensor]) -> Any:
    """The same argument with other tensors."""
    if isinstance(value, Tensor):
        return instead[id(value)]
    return tuple(_with(v, instead) for v in value) if type(value) is tuple else value


def _structure(value: Any, known: dict[int, int], made: list[Tensor]) -> Any:
    """Numbers for the tensors of a result: what is none of the inputs is collected."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = len(made)
            made.append(value)
        return known[id(value)]
    if type(value) in (tuple, list):
        return type(value)(_structure(v, known, made) for v in value)
    if value is None:
        return None
    raise _Unknown


def _built(structure: Any, inputs: list[Tensor], made: list[Tensor]) -> Any:
    if isinstance(structure, int):
        return made[structure] if structure >= 0 else inputs[-1 - structure]
    return structure if structure is None else type(structure)(_built(s, inputs, made) for s in structure)
