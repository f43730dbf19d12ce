"""Folders of transformers models: config, weights and removal. Nothing in them can run code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import LoadError
from ecospa_fx.front import load
from ecospa_fx.storage import read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
_CODE = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "quantization_config",
)
_MOST_JSON = 1 << 24  # bytes


def from_pretrained(path: str | Path, *, check: bool = True) -> CompiledModel:
    """Read what :meth:`CompiledModel.save_pretrained` wrote.

    The dense model is only ever made on the meta device. Its class is the one of this name in the installed
    transformers; the folder is not asked for code.

    Args:
        path: the folder.
        check: as for :func:`compile`.

    Returns:
        The smaller model, in evaluation mode.

    Raises:
        LoadError: files are missing, damaged, or name no model of transformers.
    """
    model: Any = _skeleton(read_json(Path(path) / CONFIG, _MOST_JSON, "config"), path)
    compiled = load(path, model, check=check)
    fill_buffers(model)
    file = Path(path) / GENERATION
    if file.is_file() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_dict(read_json(file, _MOST_JSON, "config"))
    return compiled.eval()


def save_config(model: nn.Module, path: str | Path) -> None:
    """Write what the class needs to make the dense model again.

    Raises:
        LoadError: it is no model of transformers.
    """
    import transformers

    kind = type(model)
    if getattr(transformers, kind.__name__, None) is not kind:
        raise LoadError(
            f"{kind.__name__} is not a model class of transformers, so that a config cannot bring it back; "
            "use save(path), and load(path, model) with a model made by your own code"
        )
    config: Any = copy.deepcopy(model.config)
    config.architectures = [kind.__name__]
    config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config.save_pretrained(path)
    if getattr(model, "generation_config", None) is not None:
        generation: Any = model.generation_config
        generation.save_pretrained(path)


def _skeleton(data: dict[str, Any], path: str | Path) -> Any:
    """The dense model on the meta device."""
    import transformers

    names = data.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""
    kind: Any = getattr(transformers, name, None) if name else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise LoadError(f"{path} names no model class of the installed transformers: {names!r}")
    dtype = _dtype(data)
    try:
        made: Any = kind
        config = made.config_class.from_dict(_harmless(data))
        with torch.device("meta"):
            return made(config).to(dtype)
    except Exception as error:  # whatever a class makes of a config that it does not understand
        raise LoadError(f"{Path(path) / CONFIG} does not describe a {name}: {error}") from error


def _harmless(data: Any) -> Any:
    """A config without what could name code: in a repository, or as a kernel to download."""
    if isinstance(data, dict):
        return {k: _harmless(v) for k, v in data.items() if k not in _CODE}
    return data


def _dtype(data: dict[str, Any]) -> torch.dtype:
    found = getattr(torch, str(data.get("dtype")), None)
    if not isinstance(found, torch.dtype):
        raise LoadError(f"the config names no dtype: {data.get('dtype')!r}")
    return found


def fill_buffers(model: nn.Module) -> None:
    """Buffers that are not saved, such as the frequencies of RoPE, as the model's own code makes them."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    with torch.no_grad():
        model.initialize_weights()  # type: ignore[operator]
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.__dict__.pop("_is_hf_initialized", None)
