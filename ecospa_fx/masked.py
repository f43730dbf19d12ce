"""The masked model: the dense original with every removed entry set to zero."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ecospa_fx.cut import ParameterCut
from ecospa_fx.removal import Removal
from ecospa_fx.signature import state_leaves, unbind


@dataclass(frozen=True)
class Difference:
    """Largest differences between two runs.

    Attributes:
        output: absolute, over all floating-point outputs.
        output_relative: the same, relative to the largest output.
        gradient: absolute, over the gradients of all parameters (0 where none was computed).
        gradient_relative: the same, relative to the largest gradient.
        gradient_of: name of the parameter with the largest difference.
    """

    output: float = 0.0
    output_relative: float = 0.0
    gradient: float = 0.0
    gradient_relative: float = 0.0
    gradient_of: str = ""

    def within(self, tolerance: float) -> bool:
        """Whether outputs and gradients agree to a relative ``tolerance`` (NaN never does)."""
        return self.output_relative <= tolerance and self.gradient_relative <= tolerance

    def __str__(self) -> str:
        worst = f" at {self.gradient_of}" if self.gradient_of else ""
        return (
            f"outputs differ by at most {self.output:.2e} (relative {self.output_relative:.2e}), "
            f"gradients by {self.gradient:.2e} (relative {self.gradient_relative:.2e}){worst}"
        )


def widen(small: torch.Tensor, name: str, dense: tuple[int, ...], removal: Removal) -> torch.Tensor:
    """A tensor of the dense shape with zeros where entries are gone."""
    if name in removal.stacked:
        return _slice_by_slice(name, dense, removal).scatter(small)
    wide = small
    for axis in removal.removed.get(name, {}):
        kept = torch.from_numpy(removal.kept(name, axis, dense[axis])).nonzero().flatten().to(small.device)
        shape = [dense[a] if a == axis else n for a, n in enumerate(wide.shape)]
        wide = wide.new_zeros(shape).index_copy(axis, kept, wide)
    return wide


def narrow(wide: torch.Tensor, name: str, removal: Removal) -> torch.Tensor:
    """The surviving entries of a dense tensor."""
    if name in removal.stacked:
        return _slice_by_slice(name, tuple(wide.shape), removal).apply(wide)
    for axis in removal.removed.get(name, {}):
        kept = torch.from_numpy(removal.kept(name, axis, wide.shape[axis])).nonzero().flatten()
        wide = wide.index_select(axis, kept.to(wide.device))
    return wide


def _slice_by_slice(name: str, dense: tuple[int, ...], removal: Removal) -> ParameterCut:
    """The cut of a stack, each of whose matrices loses indices of its own."""
    return ParameterCut(removal.mask(name, dense), removal.shape(name, dense), removal.stacked[name].rows)


def call_masked(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    removal: Removal,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Mapping[str, Any],
    then: Callable[[Any], Any] = lambda output: output,
) -> Any:
    """Run the original module with the dense, masked tensors in place of its own.

    Args:
        model: the original module, whose own code runs.
        state: the current (small) parameters by name.
        removal: what is gone.
        shapes: dense shape of every parameter.
        inputs: the call's arguments by name.
        then: what to do with the output while the tensors are in place: a backward pass may run parts of the
            module once more (activation checkpointing).

    Returns:
        What ``then`` returns; the output itself by default.
    """
    wide = {name: widen(p, name, shapes[name], removal) for name, p in state.items()}
    args, kwargs = unbind(fresh(inputs))
    state = {f"model.{name}": tensor for name, tensor in at_every_place(model, wide).items()}
    return functional_call(_Then(model, then), state, tuple(args), kwargs, tie_weights=False)


class _Then(nn.Module):
    def __init__(self, model: nn.Module, then: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.then(self.model(*args, **kwargs))


def at_every_place(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the name of each place that holds a parameter.

    ``functional_call`` ties weights by names, of which a module that stands in several places has several:
    what it puts back last is then what it has put there itself.

    Args:
        model: the module.
        state: tensors by the first name of each parameter.
    """
    by_parameter = {id(p): state[n] for n, p in model.named_parameters() if n in state}
    places = (
        (f"{path}.{leaf}".lstrip("."), p)
        for path, module in model.named_modules()
        for leaf, p in module._parameters.items()
    )
    return {name: by_parameter[id(p)] for name, p in places if id(p) in by_parameter}


def fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments in containers of their own: models write into the caches that they are given."""
    copied: dict[str, Any] = pytree.tree_map(lambda x: x, dict(inputs))
    return copied


def floats(output: Any) -> list[torch.Tensor]:
    """All floating-point tensors of an output, in order, without caches (whose widths may differ)."""
    leaves, tree = pytree.tree_flatten(output)
    shown = [x for x, cache in zip(leaves, state_leaves(tree), strict=True) if not cache]
    return [x for x in shown if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())]


def projected_gradients(
    outputs: Sequence[torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random projection of the outputs, by name; without those that nothing reaches."""
    active = {n: p for n, p in parameters.items() if p.requires_grad}
    live = [o for o in outputs if o.requires_grad]
    if not active or not live:
        return {}
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device, o.dtype) for o in live
    ]
    loss = sum((o * w).sum() / max(o.numel(), 1) ** 0.5 for o, w in zip(live, weights, strict=True))
    assert isinstance(loss, torch.Tensor)
    found = torch.autograd.grad(
        loss.abs() if loss.is_complex() else loss, list(active.values()), allow_unused=True
    )
    return {n: g for n, g in zip(active, found, strict=True) if g is not None}


def gradient_pairs(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Gradients side by side, by name; one that is missing is zero."""
    pairs = {}
    for name in dict.fromkeys([*expected, *found]):
        given = expected.get(name, found.get(name))
        assert given is not None
        zero = torch.zeros_like(given)
        pairs[name] = expected.get(name, zero), found.get(name, zero)
    return pairs


def largest(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Largest absolute difference, and that relative to the largest entry.

    Two entries that are not finite in the same way count as equal.
    """
    worst, scale = 0.0, 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            return float("inf"), float("inf")
        if a.numel():
            wide = torch.complex128 if a.is_complex() else torch.float64
            x, y = a.detach().to(wide), b.detach().to(wide)
            same = (x == y) | (x.isnan() & y.isnan())
            gap = torch.where(same, torch.zeros_like(x), x - y).abs()
            worst = max(worst, float(gap.nan_to_num(nan=float("inf")).max()))
            finite = x.abs()[x.abs().isfinite()]
            scale = max(scale, float(finite.max()) if finite.numel() else 0.0)
    return worst, worst / scale if scale else worst


@contextlib.contextmanager
def repeatable(model: nn.Module) -> Iterator[None]:
    """Random numbers and buffers are afterwards as they were, and random numbers start from one seed."""
    saved = {name: b.clone() for name, b in model.named_buffers() if not b.is_meta}
    devices = [d.device.index for d in model.parameters() if d.is_cuda][:1]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, b in model.named_buffers():
                    value = saved.get(name, b)
                    if b.shape == value.shape and not torch.equal(
                        b, value
                    ):  # backward may need what was read
                        b.copy_(value)
