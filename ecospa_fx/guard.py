"""Guard: whether the inputs of a call fit a capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ecospa_fx.errors import InputError, SizeError
from ecospa_fx.signature import POSITIONAL
from ecospa_fx.sizes import hint, static


def input_names(placeholders: Sequence[fx.Node], spec: pytree.TreeSpec | None) -> list[str]:
    """What users call the flat inputs, such as ``input_ids`` or ``cache[0]``.

    Args:
        placeholders: the inputs of the captured graph.
        spec: structure of its positional and keyword arguments.
    """
    names = [n.name for n in placeholders]
    if spec is None or spec.num_leaves != len(names):
        return names
    blanks = [torch.empty(0, device="meta")] * len(names)  # a cache counts only tensors as its leaves
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(blanks, spec))
    return [_spoken(path) for path, _ in paths]


def _spoken(path: Sequence[Any]) -> str:
    """``(1, 'mask', 0)`` → ``mask[0]``; ``(0, 2)`` → ``argument 2``."""
    first = str(getattr(path[1], "key", getattr(path[1], "idx", "")))
    first = (
        f"argument {first.removeprefix(POSITIONAL)}" if first.removeprefix(POSITIONAL).isdigit() else first
    )
    return first + pytree.keystr(tuple(path[2:]))


def input_guard(
    placeholders: Sequence[fx.Node], state: Sequence[bool], names: Sequence[str]
) -> Callable[[list[Any]], None]:
    """A check of flat inputs against the sizes that capture had to fix.

    Args:
        placeholders: the inputs of the captured graph.
        names: what users call them.
        state: which of them are a cache, whose heads and widths shrink with the model.
    """
    state = (*state, *[False] * (len(placeholders) - len(state)))
    expected = [
        _expected(name, n.meta.get("val"), cache)
        for name, n, cache in zip(names, placeholders, state, strict=True)
    ]

    def guard(inputs: list[Any]) -> None:
        sizes: dict[str, Any] = {}
        for want, have in zip(expected, inputs, strict=True):
            want.check(have, sizes)

    return guard


def _expected(name: str, value: Any, cache: bool) -> _Tensor | _Value:
    """What an input has to be; a cache's heads and widths are the model's."""
    if not isinstance(value, torch.Tensor):
        free = cache or value is None or isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        return _Value(name, value, free)
    if cache and value.dim() != 4:
        return _Value(name, value, True)
    axes = (0, 2) if cache else range(value.dim())
    sizes = [(axis, static(value.shape[axis]), str(value.shape[axis])) for axis in axes]
    return _Tensor(name, value.dim(), tuple(sizes), value)


@dataclass(frozen=True)
class _Value:
    """An input that is no tensor.

    Attributes:
        free: it may be anything.
    """

    name: str
    value: Any
    free: bool

    def check(self, have: Any, _: dict[str, Any]) -> None:
        if not self.free and self.value != have:
            raise InputError(
                f"input {self.name!r} was {self.value!r} when the model was captured, and is {have!r} now"
            )


@dataclass(frozen=True)
class _Tensor:
    """A tensor.

    Attributes:
        sizes: axes that count, the size that the capture had to fix there, and the symbol otherwise.
        example: what was captured.
    """

    name: str
    rank: int
    sizes: tuple[tuple[int, int | None, str], ...]
    example: torch.Tensor

    def check(self, have: Any, sizes: dict[str, Any]) -> None:
        if not isinstance(have, torch.Tensor):
            raise InputError(f"input {self.name!r} must be a tensor, not {type(have).__name__}")
        if have.dim() != self.rank:
            raise InputError(f"input {self.name!r} must have {self.rank} axes, not shape {tuple(have.shape)}")
        shape = have.shape
        for axis, only, symbol in self.sizes:
            fixed = sizes.setdefault(symbol, shape[axis]) if only is None else only
            if fixed != shape[axis]:
                raise self._misfit(axis, shape[axis], only, fixed)

    def _misfit(self, axis: int, size: int, only: int | None, fixed: int) -> SizeError:
        why = "another input has" if only is None else "the capture had to fix"
        return SizeError(
            f"input {self.name!r} has size {size} on axis {axis}, but {why} size {fixed} there; "
            "call with that size, or compile the model anew with inputs of the new one "
            f"(captured with {tuple(hint(n) for n in self.example.shape)})",
            one=only is not None and 1 in (size, only),
        )


def value_guard(
    sizes: Callable[[list[Any]], None], inputs: Mapping[str, Any], fixed: frozenset[str]
) -> Callable[[list[Any]], None]:
    """The check of sizes, and of the values that a graph is made for.

    Args:
        sizes: the check of sizes.
        inputs: what the graph was captured with, by name.
        fixed: names of inputs whose values the graph holds.

    Returns:
        A function of a call's leaves, which raises :class:`~ecospa_fx.errors.InputError` if they do not fit.
    """
    if not fixed:
        return sizes
    names = [name for name, value in inputs.items() for _ in pytree.tree_leaves(value)]
    wanted = {i: (name, inputs[name]) for i, name in enumerate(names) if name in fixed}

    def guard(leaves: list[Any]) -> None:
        sizes(leaves)
        for i, (name, value) in wanted.items():
            if not torch.equal(leaves[i].to(value.device), value):
                raise InputError(
                    f"input {name!r} has other values than at the capture, and the model reads them "
                    "into Python; compile the model anew with these inputs"
                )

    return guard
