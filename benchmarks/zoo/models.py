"""Tiny random-weight models of every architecture of transformers."""

from __future__ import annotations

import copy
import functools
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from benchmarks.zoo.configs import sub_configs, tiny_config, without_cache
from benchmarks.zoo.inputs import Guesses

RECIPES = Path(__file__).with_name("recipes.jsonl")


@dataclass(frozen=True)
class Recipe:
    """What makes the eager forward of one architecture run.

    Attributes:
        name: model type.
        cls: class of the model, "" where none runs.
        head: the auto mapping that the class was found in.
        family: family of the architecture.
        profile: how its config shrinks (see :func:`benchmarks.zoo.configs.tiny_config`).
        inputs: label of the inputs among :class:`benchmarks.zoo.inputs.Guesses`.
        parameters: number of parameters.
        error: why no class runs, else "".
    """

    name: str
    cls: str = ""
    head: str = ""
    family: str = ""
    profile: int = 0
    inputs: str = ""
    parameters: int = 0
    error: str = ""


@functools.cache
def recipes() -> Mapping[str, Recipe]:
    """All recipes by model type, in the order of the auto mappings."""
    found = (Recipe(**json.loads(line)) for line in RECIPES.read_text().splitlines())
    return {r.name: r for r in found}


def names(runnable: bool = True, family: str = "") -> list[str]:
    """Model types, those alone whose eager forward runs, or those of one family."""
    chosen = (r for r in recipes().values() if r.cls or not runnable)
    return [r.name for r in chosen if family in ("", r.family)]


def build(
    name: str, attention: str = "eager", seed: int = 0, profile: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model with random weights, and keyword inputs for it; the same for the same arguments.

    Args:
        name: model type.
        attention: implementation of attention.
        seed: of the weights.
        profile: added to the recipe's own (1: as many KV heads as heads; 16: eight heads and two KV heads).

    Raises:
        KeyError: no such architecture, or none that runs.
    """
    recipe = recipes()[name]
    if not recipe.cls:
        raise KeyError(f"no model of {name!r} runs: {recipe.error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(name, recipe.cls, recipe.profile | profile, attention, seed)
        for label, inputs in Guesses(model, name):
            if label == recipe.inputs:
                return model, inputs
    raise KeyError((name, recipe.inputs))


def make(name: str, cls_name: str, profile: int, attention: str = "eager", seed: int = 0) -> nn.Module:
    """A model of the class with a shrunk config and noisy weights."""
    config = without_cache(tiny_config(CONFIG_MAPPING[name], profile))
    cls = getattr(transformers, cls_name)
    torch.manual_seed(seed)
    config = copy.deepcopy(_part_for(cls, config))
    try:
        model = cls._from_config(config, attn_implementation=attention)
    except (ValueError, ImportError):
        if attention != "eager":
            raise
        model = cls(config)
    model = model.float().eval()
    _randomise(model, seed)
    assert isinstance(model, nn.Module)
    return model


def _part_for(cls: type, config: PreTrainedConfig) -> PreTrainedConfig:
    """The sub-config that a class wants, where it is made for a part of a composite model."""
    wanted = getattr(cls, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    return next((c for c in sub_configs(config) if isinstance(c, wanted)), config)


def _randomise(model: nn.Module, seed: int) -> None:
    """Additive noise, so that every weight counts and special initialisations keep their meaning."""
    generator = torch.Generator().manual_seed(seed + 12345)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.add_(noise * _deviation(parameter))


def _deviation(parameter: nn.Parameter) -> float:
    if parameter.dim() < 2:
        return 0.1
    fan = parameter.shape[-1] if parameter.dim() == 3 else max(1, parameter[0].numel())
    return min(0.15, 1.0 / math.sqrt(fan))


def info(name: str) -> Recipe:
    """The recipe of a model type."""
    return recipes()[name]
