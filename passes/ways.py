"""Ways: how a call may be captured, from the most general graph to the most special one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import sympy  # type: ignore[import-untyped]
import torch
import torch._functorch.config
from torch import nn
from torch.fx.experimental import symbolic_shapes
from torch.utils import _pytree as pytree
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ecospa_fx.errors import BackwardError, CaptureError
from ecospa_fx.origin import holds_parts
from ecospa_fx.passes.reads import FewReads, UnrolledError

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
_SMALL, _GRID = 64, 8
_VALUES = ("data-dependent", "data is not allocated", ".item()", "is not a constant", "_local_scalar_dense")
_LARGEST_CONSTANT = 1 << 20
_OWN_CODE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose patched graphs were wrong: a capture that cannot be compared, of a smaller model, knows it."""


@dataclass(frozen=True)
class Way:
    """One attempt at a capture.

    Attributes:
        inputs: example inputs by name.
        dynamic: whether sizes stay symbolic where the model allows it.
        deferred: sizes that depend on data are asserted at run time instead of guarded.
        strict: whether Python is analysed as bytecode.
        fixed: names of integer inputs whose very values the graph is made for.
        whole: custom autograd functions are kept as they are, with their own backward.
        scalars: buffers that hold one integer (strides, kernel sizes) are numbers of the graph.
        followed: where Python reads a value that is computed, it reads that of the example; the graph holds
            only for calls that read the same there, and checks it.
        patched: with what transformers' exporter puts in place of its own code.
    """

    inputs: Mapping[str, Any]
    dynamic: bool = True
    deferred: bool = False
    strict: bool = False
    fixed: frozenset[str] = field(default_factory=frozenset)
    whole: bool = False
    scalars: bool = False
    followed: bool = False
    patched: bool = True

    def idle(self, failure: Exception | None) -> bool:
        """Whether it could not help against what stopped the way before.

        Values that Python reads can only be fixed; and nothing else is helped by fixing them. Gradients of
        custom functions are right only where these are kept whole. Code that was put in place of a model's
        own may be what makes its graph another one.
        """
        if self.whole:
            return not isinstance(failure, BackwardError)
        if failure is None:
            return False
        if not self.patched:
            return isinstance(failure, BackwardError) or not isinstance(failure, CaptureError)
        if self.followed and isinstance(failure, UnrolledError):
            return True
        return reads_values(failure) != (bool(self.fixed) or self.scalars or self.followed)


def reads_values(failure: Exception) -> bool:
    """Whether a capture failed because Python needs the values of a tensor."""
    return any(hint in str(failure) for hint in _VALUES)


def ways(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[Way]:
    """All ways to capture one call, the preferred ones first."""
    on_meta = any(p.is_meta for p in model.parameters())  # nothing to follow there
    followed = [] if on_meta else [Way(inputs, followed=True), Way(inputs, dynamic=False, followed=True)]
    plain = [replace(way, patched=False) for way in followed]
    if model in _OWN_CODE:
        yield from plain
    unlike = unlike_sizes(model, inputs)
    if unlike is not None:
        yield Way(unlike)
        yield Way(unlike, whole=True)
        yield Way(unlike, deferred=True)
    yield Way(inputs)
    yield Way(inputs, whole=True)
    small, everything = _fixable(inputs)
    scalars = any(True for _ in scalar_buffers(model))
    if scalars:
        yield Way(inputs, scalars=True)
        yield Way(inputs, dynamic=False, scalars=True)
    if holds_parts(model):
        yield from plain
    grids = any(inputs[name].numel() <= _GRID for name in small)
    yield from () if grids else followed
    yield Way(inputs, fixed=small, scalars=scalars)
    yield Way(inputs, dynamic=False)
    yield Way(inputs, dynamic=False, fixed=small, scalars=scalars)
    yield from followed if grids else ()
    yield Way(inputs, dynamic=False, fixed=everything, scalars=scalars)
    yield Way(inputs, strict=True)
    yield Way(inputs, dynamic=False, strict=True)


def note(model: nn.Module, way: Way) -> None:
    """Remember what helped, for later captures of ``model``."""
    if not way.patched:
        _OWN_CODE.add(model)


def scalar_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Buffers that hold one integer, but for the counters of batch norms: module, name and value."""
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            for name, value in module._buffers.items():
                whole = value is not None and not value.is_floating_point() and not value.is_meta
                if value is not None and whole and value.numel() == 1 and not value.is_complex():
                    yield module, name, value


def _fixable(inputs: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Integer inputs that Python may read: the small ones (grids, lengths), and all."""
    integers = {
        name: value.numel()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex()
    }
    least = min(integers.values(), default=0)
    small = frozenset(n for n, count in integers.items() if count <= min(_SMALL, max(least, _GRID)))
    return small, frozenset(integers)


@contextlib.contextmanager
def constants_known() -> Iterator[None]:
    """Follow the values of constant tensors through the trace, so that Python may read them."""
    with contextlib.ExitStack() as stack:
        for module in ("torch.fx.experimental.proxy_tensor", "torch._subclasses.fake_tensor"):
            stack.enter_context(mock.patch(f"{module}.CONSTANT_NUMEL_LIMIT", _LARGEST_CONSTANT))
        yield


@contextlib.contextmanager
def values_followed() -> Iterator[None]:
    """Compute the example beside the trace; branches go as it goes, and are asserted in the graph.

    Torch compares what it computes with its own stand-ins, and fixes sizes by that: this is left out, for
    every capture is compared with the model. It copies the values of plain tensors only, and would compute
    with parameters of whatever was in memory: these are copied too.
    """
    mode, meta = torch._subclasses.FakeTensorMode, torch._subclasses.meta_utils
    shapes = symbolic_shapes.ShapeEnv
    compared = "_maybe_infer_fake_kernel_from_pytree_out"
    with (
        torch.random.fork_rng(),
        torch._functorch.config.patch(fake_tensor_propagate_real_tensors=True),
        mock.patch.object(mode, compared, lambda self, target, args, known, fake, real: fake),
        FewReads(),
        mock.patch.object(meta, "_safe_copy", _copied(meta._safe_copy)),
        mock.patch.object(shapes, "guard_or_defer_runtime_assert", _asserted(shapes)),
        mock.patch.object(shapes, "set_real_tensor_prop_unbacked_vals", _truths(shapes)),
    ):
        yield


def _truths(shapes: type) -> Callable[..., None]:
    """Truth values of the example (``u0 == 1``) are kept as such.

    Torch 2.11 keeps them as numbers, which are neither true nor false: a branch would go unchecked.
    """
    keep: Callable[..., None] = shapes.set_real_tensor_prop_unbacked_vals  # type: ignore[attr-defined]
    return lambda self, k, v: keep(self, k, bool(v) if isinstance(k, sympy.Eq) else v)


def _asserted(shapes: type) -> Callable[..., bool]:
    """Conditions in a form that torch writes into the graph.

    It takes bounds of one number for part of that number's range, which it asserts for integers only, and
    leaves out what has no operator: a branch would go unchecked.
    """
    defer: Callable[..., bool] = shapes.guard_or_defer_runtime_assert  # type: ignore[attr-defined]

    def deferred(self: Any, condition: Any, *args: Any, **kwargs: Any) -> bool:
        if symbolic_shapes._has_uninterpretable_sympy_function(condition):
            raise CaptureError(f"no operator checks {condition} in a graph")
        kinds = {sympy.LessThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.StrictGreaterThan}
        if type(condition) in kinds and any(map(_is_real, condition.free_symbols)):
            strict = kinds[type(condition)](*condition.args)
            condition = sympy.Or(strict, sympy.Eq(*condition.args))
        return defer(self, condition, *args, **kwargs)

    return deferred


def _is_real(symbol: Any) -> bool:
    return symbol_is_type(symbol, SymT.UNBACKED_FLOAT)


def _copied(copy: Callable[[torch.Tensor, Any], None]) -> Callable[[torch.Tensor, Any], None]:
    """``copy``, which takes plain tensors only, for parameters and for those that repeat their entries."""

    def copied(new: torch.Tensor, old: Any) -> None:
        if type(old) is nn.Parameter:
            once = tuple(slice(0, 1) if step == 0 else slice(None) for step in new.stride())
            new, old = new[once], old.data[once]
        copy(new, old)

    return copied


def unlike_sizes(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same inputs with prime batch and sequence sizes, so that no two axes can be confused."""
    tensors = [t for t in pytree.tree_leaves(dict(inputs)) if isinstance(t, torch.Tensor) and t.dim() > 0]
    batches = {t.shape[0] for t in tensors}
    if len(batches) != 1 or not tensors:
        return None
    taken = {n for p in model.parameters() for n in p.shape} | {n for t in tensors for n in t.shape[1:]}
    sizes = {(0, batch): next(p for p in _PRIMES if p not in taken) for batch in batches}
    tokens = {t.shape[1] for t in tensors if t.dim() == 2 and not t.is_floating_point()}
    if tokens == {1} and all(t.shape[1] == 1 for t in tensors if t.dim() > 1):
        tokens, sizes[(1, 1)] = set(), next(p for p in _PRIMES if p not in taken and p not in sizes.values())
    for length in sorted(tokens):
        smaller = [p for p in _PRIMES if p <= length and p not in taken and p not in sizes.values()]
        sizes[(1, length)] = smaller[-1] if smaller else length

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0:
            return leaf
        for axis, size in enumerate(leaf.shape):
            new = (
                sizes.get((min(axis, 1), size), size)
                if axis != 1 or leaf.dim() != 3 or size in tokens
                else size
            )
            if new != size and (axis == 0 or not leaf.is_floating_point() or leaf.dim() != 2):
                leaf = leaf.index_select(axis, torch.arange(new, device=leaf.device) % size)
        return leaf

    return pytree.tree_map(resize, dict(inputs))  # type: ignore[no-any-return]
