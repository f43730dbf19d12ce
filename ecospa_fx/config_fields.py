"""Fields of a config that say widths: of the whole model, of one layer, or a list with an entry a layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
"""``("text_config", "head_dim")``; with ``(..., 3, "head_dim")`` the override of layer 3 in
``per_layer_config``, with ``(..., "intermediate_size", 3)`` entry 3 of a list."""
Number = int | float
Change = dict[Path, Number]


def numbers(config: Any, path: Path = ()) -> Iterator[tuple[Path, Number | None]]:
    """Numbers of a config and of those inside it: scalars, lists of one repeated number, and what is None."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            yield from numbers(value, (*path, name))
        elif value is None or _is_width(value):
            yield (*path, name), value
        elif (
            isinstance(value, list) and value and _is_width(value[0]) and value.count(value[0]) == len(value)
        ):
            yield (*path, name), value[0]


def _is_width(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and value > (isinstance(value, int))


def changed(config: Any, change: Mapping[Path, Number]) -> Any:
    """A copy of a config with other numbers in it."""
    config = copy.deepcopy(config)
    for path, value in change.items():
        name, layer = _name_and_layer(path)
        owner = owner_of(config, path)
        held = vars(owner).get(name)
        if isinstance(held, list):
            setattr(owner, name, [value if layer in (None, i) else old for i, old in enumerate(held)])
        elif layer is None:
            setattr(owner, name, value)
        else:
            override(owner, layer, name, value)
    return config


def override(config: Any, layer: int, name: str, value: Number) -> None:
    """Let one layer have a number of its own (``per_layer_config`` of transformers)."""
    known = {int(i): dict(v) for i, v in config.to_dict().get("per_layer_config", {}).items()}
    known.setdefault(layer, {})[name] = value
    config.per_layer_config = known


def owner_of(config: Any, path: Path) -> Any:
    """The config inside ``config`` to which a field belongs."""
    for part in [p for p in path if isinstance(p, str)][:-1]:
        config = getattr(config, part)
    return config


def of_layer(config: Any, path: Path, layer: int) -> Path:
    """The field of one layer that stands for a field of all, as its config writes it."""
    held = vars(owner_of(config, path)).get(str(path[-1]))
    return (*path, layer) if isinstance(held, list) else (*path[:-1], layer, path[-1])


def takes_layers(config: Any, path: Path, layers: int) -> bool:
    """Whether a field can have another value in each of so many layers."""
    owner = owner_of(config, path)
    held = vars(owner).get(str(path[-1]))
    if isinstance(held, list):
        return len(held) == layers
    return hasattr(owner, "per_layer_config") and vars(owner).get("num_hidden_layers") == layers


def spoken(change: Mapping[Path, Number]) -> str:
    """``intermediate_size=24, head_dim of layer 2=6``."""
    words = []
    for path, value in change.items():
        name, layer = _name_and_layer(path)
        words.append(f"{name}{'' if layer is None else f' of layer {layer}'}={value}")
    return ", ".join(words)


def _name_and_layer(path: Path) -> tuple[str, int | None]:
    return (
        next(p for p in reversed(path) if isinstance(p, str)),
        next((p for p in path if isinstance(p, int)), None),
    )
