"""Say: the changes of a config with which a class builds tensors of given shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ecospa_fx.config_fields import Change, Number, Path, changed, numbers, of_layer, spoken, takes_layers
from ecospa_fx.storage import unique_tensors

Shapes = dict[str, tuple[int, ...]]
_MOST_TRIES = 12
_SMALL = 16  # an int above is no factor such as mlp_ratio
_UP = 1 + 1e-12  # int(width * ratio) rounds down


class Say:
    """What a config can say of a model's shapes, tried on the meta device.

    Args:
        source: the model, with the shapes that are wanted.
        dense: shapes before anything was removed.

    Attributes:
        best: shapes that differ, of the closest config that did not do; empty if none was missed.
        fields: numbers of the config on which some shape depends.
        refused: why the class takes no widths of single layers; empty if that was not tried.
    """

    def __init__(self, source: Any, dense: Mapping[str, tuple[int, ...]]) -> None:
        self.source = source
        self.wanted = shapes_of(source)
        self.dense = {n: dense.get(n, shape) for n, shape in self.wanted.items()}
        self.best: list[str] = []
        self.refused = ""
        self.fields = {p: v for p, v in numbers(source.config) if v is not None and self._matters(p, v)}

    def solutions(self) -> Iterator[Change]:
        """Changes with which every shape fits, those that say least first."""
        yield from self._whole({})
        pins = self.pins()
        if pins:
            self.fields |= pins
            yield from (self._plain(change, pins) for change in self._whole(dict(pins)))
        change = self._by_layer()
        if change is not None:
            yield change

    def built(self, change: Change) -> Any:
        """The class with a changed config, on the meta device."""
        with torch.device("meta"):
            return type(self.source)(changed(self.source.config, change))

    def _whole(self, start: Change) -> Iterator[Change]:
        """Solutions with one number for all layers; after each, others without one of its fields."""
        queue: list[frozenset[Path]] = [frozenset()]
        seen, tries = set(queue), 0
        while queue and tries < _MOST_TRIES:
            banned, tries = queue.pop(0), tries + 1
            fields = {p: v for p, v in self.fields.items() if p not in banned}
            change = self._climb(start, fields, self.wanted)
            if change is None:
                continue
            yield change
            for more in (banned | {field} for field, value in change.items() if start.get(field) != value):
                if more not in seen:
                    seen.add(more)
                    queue.append(more)

    def _climb(self, start: Change, fields: Mapping[Path, Number], wanted: Shapes) -> Change | None:
        """Take the one change that makes most shapes fit, until all do."""
        change, left = dict(start), self._misfits(start, wanted)
        ratios = self._ratios(wanted)
        free = dict(fields)
        while left:
            options = [{**change, p: v} for p, old in free.items() for v in _values(old, ratios)]
            tried = [(o, self._misfits(o, wanted)) for o in options]
            taken = [(o, misfits) for o, misfits in tried if misfits is not None]
            best, fewest = min(taken, key=lambda t: len(t[1]), default=({}, left))
            if len(fewest) >= len(left):
                self.best = left if not self.best or len(left) < len(self.best) else self.best
                return None
            free = {p: v for p, v in free.items() if best.get(p) == change.get(p)}
            change, left = best, fewest
        return None if left is None else change

    def _by_layer(self) -> Change | None:
        """A solution in which layers have numbers of their own."""
        change: Change = {}
        known: dict[Path, Number] = {}
        for layers in _stacks(self.wanted).values():
            for layer, wanted in layers.items():
                if not self._misfits({}, wanted):
                    continue
                fields = {p: v for p, v in self.fields.items()
                          if takes_layers(self.source.config, p, len(layers))}  # fmt: skip
                found = self._climb({}, {p: fields[p] for p in known if p in fields}, wanted)
                found = found or self._climb({}, fields, wanted)
                if found is None:
                    return None
                known |= found
                change |= {of_layer(self.source.config, p, layer): v for p, v in found.items()}
                if left := self._left(change, wanted):
                    self.refused = f"{type(self.source).__name__} does not take {spoken(change)}: {left}"
                    return None
        return change if change and not self._left(change, self.wanted) else None

    def _left(self, change: Change, wanted: Shapes) -> str:
        """What does not fit, in words."""
        try:
            found = shapes_of(self.built(change))
        except Exception as error:  # whatever a class says of a config that it does not take
            return str(error).partition(". ")[0]
        return next(iter(_differing(wanted, found)), "")

    def _matters(self, path: Path, value: Number) -> bool:
        """Whether some shape depends on a number."""
        misfits = self._misfits({path: 2 * value}, self.dense)
        return misfits is None or bool(misfits)

    def pins(self) -> Change:
        """For fields that are None and stand for a number: that number."""
        sizes = {n for shape in self.dense.values() for n in shape}
        parts = sizes | {s // n for s in sizes for n in self.fields.values() if n > 1 and s % n == 0}
        tried = sorted(int(n) for n in parts if n > 1)
        none = [path for path, value in numbers(self.source.config) if value is None]
        found = {path: next((n for n in tried if self._misfits({path: n}, self.dense) == []), None)
                 for path in none if self._matters(path, 1) and self._matters(path, tried[-1])}  # fmt: skip
        return {path: n for path, n in found.items() if n is not None}

    def _plain(self, change: Change, pins: Change) -> Change:
        """The change without pins that say what the class does anyway."""
        for path in pins:
            without = {p: v for p, v in change.items() if p != path}
            change = without if change[path] == pins[path] and self._misfits(without) == [] else change
        return change

    def _ratios(self, wanted: Shapes) -> set[tuple[int, int]]:
        pairs = ((self.dense[name], small) for name, small in wanted.items())
        return {(n, m) for dense, small in pairs for n, m in zip(dense, small, strict=True) if n != m}

    def _misfits(self, change: Change, wanted: Shapes | None = None) -> list[str] | None:
        """Tensors whose shapes differ; None where the class does not take such a config."""
        try:
            return _differing(self.wanted if wanted is None else wanted, shapes_of(self.built(change)))
        except Exception:  # whatever a class says of a config that it does not take
            return None


def shapes_of(model: nn.Module) -> Shapes:
    """Shape of every tensor, each once."""
    return {name: tuple(tensor.shape) for name, tensor in unique_tensors(model).items()}


def _differing(wanted: Shapes, found: Shapes) -> list[str]:
    return [
        f"{name} has shape {list(shape)}, not {list(found.get(name, ()))}"
        for name, shape in wanted.items()
        if found.get(name) != shape
    ]


def _values(old: Number, ratios: set[tuple[int, int]]) -> list[Number]:
    """What may become of a number that goes with an axis."""
    if isinstance(old, float):
        return sorted({old * m / n * _UP for n, m in ratios})
    whole: set[Number] = {old * m // n for n, m in ratios if old * m % n == 0 and old * m >= n}
    return sorted(whole | ({old * m / n * _UP for n, m in ratios if old * m % n} if old <= _SMALL else set()))


def _stacks(shapes: Shapes) -> dict[str, dict[int, Shapes]]:
    """Shapes by the list of modules that they stand in, and by the place there."""
    found: dict[str, dict[int, Shapes]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        if match := re.match(r"(.*?)\.(\d+)\.", name):
            found[match[1]][int(match[2])][name] = shape
    return found
