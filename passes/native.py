"""Native: the smaller model as a plain model of its own class, where a config can say its widths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ecospa_fx.errors import NativeError
from ecospa_fx.masked import floats, fresh, largest
from ecospa_fx.modes import modes_kept
from ecospa_fx.passes.check import tolerance
from ecospa_fx.pretrained import fill_buffers
from ecospa_fx.signature import unbind
from ecospa_fx.storage import fill, unique_tensors

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel

Change = dict[tuple[str, ...], int]
Shapes = dict[str, tuple[int, ...]]
_MOST_TRIES = 12


def native(compiled: CompiledModel) -> nn.Module:
    """A plain model of the original class, with a changed config, that computes what ``compiled`` does.

    Fields of the config are tried: one whose value goes with an axis in the dense model goes with it in the
    smaller one. What counts is that all shapes fit, and then that the outputs agree.

    Raises:
        NativeError: no config says these widths, or the class computes something else with them.
    """
    source: Any = compiled.source
    if not hasattr(getattr(source, "config", None), "to_dict"):
        raise NativeError(f"{type(source).__name__} has no config that could say other widths")
    search = _Search(source, compiled.dense_shapes)
    if any(p.is_meta for p in source.parameters()):
        raise NativeError("the model is on the meta device, so that nothing can be compared")
    worst = 0.0
    for change in search.solutions():
        model: nn.Module = _filled(search.built(change), source)
        worst = _difference(compiled, model)
        if worst <= tolerance(list(source.parameters())):
            return model.train(source.training)
    if search.best:
        more = f" and {len(search.best) - 4} more" if len(search.best) > 4 else ""
        raise NativeError(
            f"no config of {type(source).__name__} says these widths: {'; '.join(search.best[:4])}{more}. "
            'Widths must be equal over layers and heads whole: plan with layout="native"'
        )
    raise NativeError(
        f"{type(source).__name__} computes something else with the config that has these widths (relative "
        f'difference {worst:.1e}): heads must stay whole. Plan with layout="native"'
    )


class _Search:
    """Changes of a config, tried on the meta device."""

    def __init__(self, source: Any, dense: Mapping[str, tuple[int, ...]]) -> None:
        self.source = source
        self.wanted = _shapes(source)
        self.ratios = {
            (n, m)
            for name, small in self.wanted.items()
            for n, m in zip(dense.get(name, small), small, strict=True)
            if n != m
        }
        self.best: list[str] = []

    def solutions(self) -> Iterator[Change]:
        """Changes with which every shape fits; after each, others without one of its fields."""
        queue: list[frozenset[tuple[str, ...]]] = [frozenset()]
        seen, tries = set(queue), 0
        while queue and tries < _MOST_TRIES:
            banned, tries = queue.pop(0), tries + 1
            change = self._climb(banned)
            if change is None:
                continue
            yield change
            for more in ({*banned, field} for field in change):
                if frozenset(more) not in seen:
                    seen.add(frozenset(more))
                    queue.append(frozenset(more))

    def _climb(self, banned: frozenset[tuple[str, ...]]) -> Change | None:
        """Take the one change that makes most shapes fit, until all do."""
        change: Change = {}
        left = self._misfits(change)
        while left:
            options = [
                {**change, field: value}
                for field, old in _numbers(self.source.config)
                if field not in banned and field not in change
                for value in self._values(old)
            ]
            tried = [(o, self._misfits(o)) for o in options]
            taken = [(o, misfits) for o, misfits in tried if misfits is not None]
            best, fewest = min(taken, key=lambda t: len(t[1]), default=({}, left))
            if len(fewest) >= len(left):
                self.best = left if not self.best or len(left) < len(self.best) else self.best
                return None
            change, left = best, fewest
        return None if left is None else change

    def _values(self, old: int) -> list[int]:
        return sorted({old * m // n for n, m in self.ratios if old * m % n == 0 and old * m // n > 0})

    def _misfits(self, change: Change) -> list[str] | None:
        """Tensors whose shapes differ; None where the class does not take such a config."""
        try:
            found = _shapes(self.built(change))
        except Exception:  # whatever a class says of a config that it does not take
            return None
        return [
            f"{name} has shape {list(shape)}, not {list(found.get(name, ()))}"
            for name, shape in self.wanted.items()
            if found.get(name) != shape
        ]

    def built(self, change: Change) -> Any:
        """The class with a changed config, on the meta device."""
        config = copy.deepcopy(self.source.config)
        for (*path, last), value in change.items():
            owner = config
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, value)
        with torch.device("meta"):
            return type(self.source)(config)


def _numbers(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Whole numbers of a config and of those inside it."""
    for name, value in vars(config).items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield (*path, name), value
        elif hasattr(value, "to_dict") and not name.startswith("_"):
            yield from _numbers(value, (*path, name))


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in unique_tensors(model).items()}


def _filled(model: Any, source: Any) -> Any:
    dtype = next(source.parameters()).dtype
    model.to(dtype)
    fill(model, {name: tensor.detach().clone() for name, tensor in unique_tensors(source).items()})
    fill_buffers(model)
    if getattr(source, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(source.generation_config)
    return model.to(next(source.parameters()).device)


def _difference(compiled: CompiledModel, model: nn.Module) -> float:
    """Largest relative difference of the outputs on the inputs of the first capture, in evaluation mode."""
    args, kwargs = unbind(fresh(compiled.signatures.first(compiled.removal).inputs))
    try:
        with torch.no_grad(), modes_kept(compiled.source, compiled):
            found = floats(model.eval()(*args, **kwargs))
            expected = floats(compiled.eval()(*args, **kwargs))
    except RuntimeError:  # shapes that do not meet
        return float("inf")
    if len(found) != len(expected):
        return float("inf")
    return largest(list(zip(expected, found, strict=True)))[1]
