"""Native: the smaller model as a plain model of its own class, where a config can say its widths."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call

from ecospa_fx.config_fields import spoken
from ecospa_fx.errors import NativeError
from ecospa_fx.masked import at_every_place, floats, fresh, largest
from ecospa_fx.modes import modes_kept
from ecospa_fx.passes.check import tolerance
from ecospa_fx.passes.say import Say, shapes_of
from ecospa_fx.pretrained import fill_buffers
from ecospa_fx.signature import unbind
from ecospa_fx.storage import fill, unique_tensors

if TYPE_CHECKING:
    from ecospa_fx.compiled import CompiledModel

Weights = dict[str, torch.Tensor]


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
    if any(p.is_meta for p in source.parameters()):
        raise NativeError("the model is on the meta device, so that nothing can be compared")
    search, failed = Say(source, compiled.dense_shapes), ""
    for change in search.solutions():
        for gains in _gains(compiled):
            model: nn.Module = _filled(search.built(change), source, gains)
            failed = _unloadable(model) or _unequal(compiled, model, gains)
            if not failed:
                return model.train(source.training)
        failed = f"with {spoken(change)} {failed}"
    raise NativeError(_why(type(source).__name__, search, failed))


def _why(name: str, search: Say, failed: str) -> str:
    """What to tell a user whose widths no config says."""
    advice = 'Widths must be equal over layers and heads whole: plan with layout="native"'
    if failed:
        return f"{name} computes something else with the config that has these widths: {failed}. {advice}"
    more = f" and {len(search.best) - 4} more" if len(search.best) > 4 else ""
    layers = f". Widths of single layers: {search.refused}" if search.refused else ""
    return f"no config of {name} says these widths: {'; '.join(search.best[:4])}{more}{layers}. {advice}"


def _unloadable(model: Any) -> str:
    """Why the config, once written and read, would not build this model; empty if it does."""
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.device("meta"):
        again = shapes_of(type(model)(config))
    return "" if again == shapes_of(model) else "its config does not survive being saved"


def _gains(compiled: CompiledModel) -> list[Weights]:
    """Factors for scales of norms: none, and those that undo that a norm divides by its smaller width."""
    found = {
        name: torch.tensor((compiled.dense_shapes[name][0] / p.shape[0]) ** 0.5)
        for name, p in compiled.named_parameters()
        if name.endswith("weight") and p.dim() == 1 and p.shape != compiled.dense_shapes[name]
    }
    return [{}, found] if found else [{}]


def _filled(model: Any, source: Any, gains: Weights) -> Any:
    """The model with the weights, buffers and generation config of another, its norms scaled."""
    model.to(next(source.parameters()).dtype)
    tensors = {name: tensor.detach().clone() for name, tensor in unique_tensors(source).items()}
    fill(model, _scaled(tensors, gains))
    fill_buffers(model)
    if getattr(source, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(source.generation_config)
    return model.to(next(source.parameters()).device)


def _scaled(tensors: Weights, gains: Weights) -> Weights:
    return {n: t * gains[n].to(t.device, t.dtype) if n in gains else t for n, t in tensors.items()}


def _unequal(compiled: CompiledModel, model: nn.Module, gains: Weights) -> str:
    """How outputs differ, with the weights as they are and with random ones; empty if they agree.

    The inputs are those of the first capture, in evaluation mode. Weights of a young model are so small that
    a block adds next to nothing; random ones of unit gain show what each block computes.
    """
    with torch.no_grad(), modes_kept(compiled.source, compiled):
        compiled.eval()
        model.eval()
        for weights in ({n: p.detach() for n, p in compiled.named_parameters()}, _of_unit_gain(compiled)):
            expected = _outputs(compiled, weights, compiled)
            try:
                found = _outputs(model, _scaled(weights, gains), compiled)
            except RuntimeError as error:  # shapes that do not meet, or kernels that do not take them
                return f"its own code fails ({str(error).splitlines()[0]}); round_to=8 makes even widths"
            worst = largest(list(zip(expected, found, strict=False)))[1]
            if len(found) != len(expected) or not worst <= tolerance(list(weights.values())):
                return f"outputs differ (relative {worst:.1e})"
    return ""


def _outputs(model: nn.Module, weights: Weights, compiled: CompiledModel) -> list[torch.Tensor]:
    named = compiled.signatures.first(compiled.removal).inputs
    args, kwargs = unbind(fresh(compiled.signatures.compared(named, compiled.removal)[0]))
    state = at_every_place(model, weights)
    return floats(functional_call(model, state, tuple(args), kwargs, tie_weights=False))


def _of_unit_gain(model: nn.Module) -> Weights:
    """Random matrices that keep the size of what they map, and vectors near what they were."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        vector = p.detach() + noise / 8
        found[name] = noise / min(p.shape[-2:]) ** 0.5 if p.dim() > 1 else vector
    return found
