"""Gradients as users hand them in: checked, and brought under the parameters' own names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ecospa_fx.errors import GradientError
from ecospa_fx.suggestion import did_you_mean


def checked_gradients(
    held: Iterable[str], parameters: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """The gradients of all parameters in ``held`` that have one.

    Parameters that do not require a gradient may go without; gradients of parameters that no couple holds
    are ignored. NaN is looked for later, where gradients are read anyway.

    Args:
        held: names of the parameters that couples hold.
        parameters: all parameters of the model by name, a tied one under each of its names.
        gradients: by any name of the parameter; None for the parameters' own ``.grad``.

    Raises:
        GradientError: gradients are missing, misnamed, no tensors or of the wrong shape; all are listed.
    """
    if gradients is None:
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    problems = _misnamed(parameters, gradients)
    names = {id(p): n for n, p in parameters.items() if n in gradients}
    found: dict[str, torch.Tensor] = {}
    missing = []
    for name in dict.fromkeys(held):
        gradient = gradients.get(names.get(id(parameters[name]), ""))
        if gradient is not None:
            problems += _misshapen(name, parameters[name], gradient)
            found[name] = gradient
        elif parameters[name].requires_grad:
            missing.append(name)
    problems += _missing(missing, bool(gradients))
    if problems:
        raise GradientError("the gradients do not fit the model:\n  " + "\n  ".join(problems))
    if not found:
        raise GradientError(
            "no parameter held by couples has a gradient, because none requires one: call requires_grad_() "
            "on the weights to be measured, or choose a score and an allocation that need no gradients"
        )
    return {n: g.to_dense() if g.layout != torch.strided else g for n, g in found.items()}


def _misnamed(parameters: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name!r} is no parameter of the model{_suggestion(name, parameters)}"
        for name in gradients
        if name not in parameters
    ]


def _suggestion(name: str, parameters: Mapping[str, torch.Tensor]) -> str:
    tails = [n for n in parameters if name.endswith(f".{n}")]
    return did_you_mean(tails[0] if tails else name, parameters)


def _misshapen(name: str, parameter: torch.Tensor, gradient: object) -> list[str]:
    if not isinstance(gradient, torch.Tensor):
        return [f"the gradient of {name!r} is a {type(gradient).__name__}, not a tensor"]
    if gradient.shape != parameter.shape:
        return [f"the gradient of {name!r} has shape {list(gradient.shape)}, not {list(parameter.shape)}"]
    return []


def _missing(names: list[str], any_given: bool) -> list[str]:
    if not names:
        return []
    hint = "was it used in the loss?" if any_given else "call backward() first, or pass grads"
    return [f"no gradient for {', '.join(map(repr, names))}: {hint}"]
