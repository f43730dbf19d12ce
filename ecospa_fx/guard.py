"""Guard: whether the inputs of a call fit a capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    expected = [(name, n.meta.get("val")) for name, n in zip(names, placeholders, strict=True)]
    state = (*state, *[False] * (len(expected) - len(state)))

    def guard(inputs: list[Any]) -> None:
        sizes: dict[str, int] = {}
        for (name, want), have, cache in zip(expected, inputs, state, strict=True):
            if cache and not (isinstance(want, torch.Tensor) and want.dim() == 4):
                continue
            if isinstance(want, torch.Tensor):
                _check_tensor(name, want, have, sizes, (0, 2) if cache else None)
            elif (
                not isinstance(want, (torch.SymInt, torch.SymFloat, torch.SymBool))
                and want is not None
                and want != have
            ):
                raise InputError(
                    f"input {name!r} was {want!r} when the model was captured, and is {have!r} now"
                )

    return guard


def _check_tensor(
    name: str, want: torch.Tensor, have: Any, sizes: dict[str, int], axes: Sequence[int] | None
) -> None:
    if not isinstance(have, torch.Tensor):
        raise InputError(f"input {name!r} must be a tensor, not {type(have).__name__}")
    if have.dim() != want.dim():
        raise InputError(f"input {name!r} must have {want.dim()} axes, not shape {tuple(have.shape)}")
    for axis in range(want.dim()) if axes is None else axes:
        w, h = want.shape[axis], have.shape[axis]
        only = static(w)
        fixed = sizes.setdefault(str(w), int(h)) if only is None else only
        if fixed != h:
            why = "another input has" if only is None else "the capture had to fix"
            raise SizeError(
                f"input {name!r} has size {h} on axis {axis}, but {why} size {fixed} there; "
                "call with that size, or compile the model anew with inputs of the new one "
                f"(captured with {tuple(hint(n) for n in want.shape)})",
                one=only is not None and 1 in (h, only),
            )
