"""The masked model, written down once more for the tests: the dense original, parameters times masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ecospa_fx import CompiledModel

Tensors = dict[str, Tensor]


class MaskedModel:
    """An independent copy of a dense model, of which entries are masked.

    Args:
        dense: the model before anything was removed.
    """

    def __init__(self, dense: nn.Module) -> None:
        self.model = copy.deepcopy(dense)
        self.parameters = dict(self.model.named_parameters())
        self.masks: Tensors = {n: torch.ones_like(p, dtype=torch.bool) for n, p in self.parameters.items()}

    def follow(self, compiled: CompiledModel) -> None:
        """Mask what the compiled model has lost."""
        self.masks = {n: compiled.kept_mask(n) for n in self.parameters}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = {n: p * self.masks[n] for n, p in self.parameters.items()}
        return functional_call(self.model, state, args, kwargs)

    def survivors(self, dense: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
        """The entries of dense tensors that are still there, in the small shapes."""
        return {n: t[self.masks[n]].view(like[n].shape) for n, t in dense.items()}


def first_tensor(output: Any) -> Tensor:
    """The output that counts: logits, hidden states or a plain tensor."""
    if isinstance(output, Tensor):
        return output
    value = output[0]
    return value if isinstance(value, Tensor) else first_tensor(value)


def loss_of(output: Any) -> Tensor:
    """A number with a gradient everywhere."""
    y = first_tensor(output)
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + y.square().mean()


def assert_same(
    compiled: CompiledModel, masked: MaskedModel, call: Callable[[Any], Any], tolerance: float = 1e-9
) -> None:
    """Outputs and all gradients agree, relative to the largest entry."""
    masked.follow(compiled)
    small, large = dict(compiled.named_parameters()), masked.parameters
    found, expected = call(compiled), call(masked)
    assert_close(first_tensor(found), first_tensor(expected), tolerance, "outputs")
    got = torch.autograd.grad(loss_of(found), list(small.values()), allow_unused=True)
    want = torch.autograd.grad(loss_of(expected), list(large.values()), allow_unused=True)
    dense = {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(large.items(), want, strict=True)
    }
    kept = masked.survivors(dense, small)
    for (name, p), gradient in zip(small.items(), got, strict=True):
        assert_close(torch.zeros_like(p) if gradient is None else gradient, kept[name], tolerance, name)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal up to ``tolerance`` times the largest entry."""
    assert found.shape == expected.shape, what
    gap, scale = (found - expected).detach().abs().max(), expected.detach().abs().max()
    assert gap <= tolerance * max(float(scale), 1.0), f"{what}: {gap:.2e} of {scale:.2e}"
