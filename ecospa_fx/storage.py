"""Save and load: weights as safetensors, the removal as JSON. Nothing in these files can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ecospa_fx.errors import LoadError, PlanError
from ecospa_fx.removal import Removal

FORMAT = "ecospa_fx"
VERSION = 1
WEIGHTS = "weights.safetensors"
REMOVAL = "removal.json"
_MOST_JSON = 1 << 30  # bytes: a 70B model's removal is far below


def save_files(path: str | Path, tensors: Mapping[str, torch.Tensor], removal: Removal) -> None:
    """Write both files into the folder ``path``, which is made if need be."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
    save_removal(folder, removal)


def save_removal(folder: Path, removal: Removal) -> None:
    """Write what was removed into a folder that exists."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **removal.to_dict()})
    (folder / REMOVAL).write_text(text, encoding="utf-8")


def read_json(file: Path, most: int, what: str) -> dict[str, Any]:
    """A mapping from a file of at most ``most`` bytes.

    Raises:
        LoadError: the file is missing, too large, or holds something else.
    """
    if not file.is_file():
        raise LoadError(f"there is no {file.name} in {file.parent}")
    if file.stat().st_size > most:
        raise LoadError(f"{file} is larger than any {what} can be ({file.stat().st_size} bytes)")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file} is malformed: {error}") from error
    if not isinstance(data, dict):
        raise LoadError(f"{file} is malformed: it holds no mapping")
    return data


def load_removal(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> Removal:
    """Read and check what was removed.

    Args:
        path: the folder.
        shapes: dense shape of every parameter of the model that it is for.

    Raises:
        LoadError: the file is missing, malformed, of another version, or for another model.
    """
    file = Path(path) / REMOVAL
    data = read_json(file, _MOST_JSON, "removal")
    try:
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise LoadError(
                f"{file} is of format {data.get('format')!r} version {data.get('version')!r}, "
                f"not {FORMAT!r} {VERSION}"
            )
        removal = Removal.from_dict(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PlanError) as error:
        raise LoadError(f"{file} is malformed: {error}") from error
    wrong = [
        f"{n}: saved from {list(s)}, the model has {list(shapes.get(n, ()))}"
        for n, s in removal.shapes.items()
        if shapes.get(n) != s
    ]
    if wrong:
        raise LoadError("the files were made from another model: " + "; ".join(wrong[:8]))
    return removal


def load_tensors(
    path: str | Path, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> dict[str, torch.Tensor]:
    """Read tensors whose names, shapes and dtypes are known beforehand.

    Raises:
        LoadError: the file is missing or damaged, or something in it is not as expected; all of it is listed,
            and no tensor has been read by then.
    """
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise LoadError(f"there is no {WEIGHTS} in {path}")
    try:
        with safe_open(file, framework="pt") as stored:
            problems = list(_problems(stored, expected))
            if problems:
                raise LoadError(f"{file} does not fit the model: " + "; ".join(problems[:8]))
            return {name: stored.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise LoadError(f"{file} is damaged: {error}") from error


def _problems(stored: Any, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Any:
    names = set(stored.keys())
    yield from (f"{n} is missing" for n in expected if n not in names)
    yield from (f"{n} is unknown" for n in sorted(names - expected.keys()))
    for name, (shape, _) in expected.items():
        if name in names and tuple(stored.get_slice(name).get_shape()) != shape:
            yield f"{name} has shape {stored.get_slice(name).get_shape()}, not {list(shape)}"


def unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers under their first names."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor
    return result


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy loaded tensors into a model of the same shapes; one on the meta device takes them as they are."""
    with torch.no_grad():
        for name, own in unique_tensors(model).items():
            if own.is_meta:
                _replace(model, own, tensors[name].to(own.dtype))
            else:
                own.copy_(tensors[name])


def _replace(model: nn.Module, own: torch.Tensor, value: torch.Tensor) -> None:
    """Put ``value`` wherever ``own`` hangs."""
    made: torch.Tensor = nn.Parameter(value, own.requires_grad) if isinstance(own, nn.Parameter) else value
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for leaf, tensor in held.items():
                if tensor is own:
                    held[leaf] = made  # type: ignore[assignment]
