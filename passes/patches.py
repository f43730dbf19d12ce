"""Patches: what models do in Python that a graph cannot hold, and what stands in for it during a capture."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ecospa_fx.origin import exporter, holds_pretrained
from ecospa_fx.passes.ways import scalar_buffers
from ecospa_fx.sizes import static

Scalars = list[tuple[nn.Module, str, torch.Tensor]]


@contextlib.contextmanager
def traceable(model: nn.Module, strict: bool = False, patched: bool = True) -> Iterator[list[int]]:
    """Inside, ``model`` can be traced; afterwards its modules and parameters are where they were.

    Args:
        model: the module.
        strict: its Python is analysed as bytecode, which follows no mode.
        patched: with what transformers' exporter puts in place of its models' code.

    Yields:
        A list that receives the length of every loop that was unrolled over all places of a mask.
    """
    unrolled: list[int] = []
    with contextlib.ExitStack() as stack:
        replaced = tables_kept(model, "_modules")  # by forward itself
        for context in (*_transformers(model, patched), _no_fast_path(), replaced, _functional_casts()):
            stack.enter_context(context)
        stack.enter_context(contextlib.nullcontext() if strict else _AsTraced())
        stack.enter_context(_loops_over_every_place(unrolled))
        yield unrolled


def _transformers(model: nn.Module, patched: bool) -> list[Any]:
    """What transformers' own exporter does to make its models traceable, taken from it."""
    if not holds_pretrained(model):
        return []
    own = exporter()
    if own is None:
        return []
    own.dynamo.register_cache_pytrees_for_model(model)
    patches = _patches_of_loaded(own.utils) if patched else contextlib.nullcontext()
    return [patches, own.dynamo.reset_model_state(model), _masks_without_vmap(), _without_windows()]


@contextlib.contextmanager
def _patches_of_loaded(utils: Any) -> Iterator[None]:
    """The exporter's patches, without those of models that are not loaded: it would load each of them."""
    with contextlib.ExitStack() as stack:
        with _loading_nothing(utils):
            stack.enter_context(utils.apply_patches("dynamo"))
        yield


def _loading_nothing(utils: Any) -> Any:
    """Inside, paths to models that are not loaded lead nowhere.

    Before transformers 5.23 the exporter has followed them when it was loaded itself.
    """
    find: Callable[..., Any] | None = getattr(utils, "import_dotted_path", None)
    if find is None:
        return contextlib.nullcontext()

    def loaded(path: str, *args: Any, **kwargs: Any) -> Any:
        module = ".".join(path.split(".")[:4])  # transformers.models.llama.modeling_llama
        missing = path.startswith("transformers.models.") and module not in sys.modules
        return None if missing else find(path, *args, **kwargs)

    return mock.patch.object(utils, "import_dotted_path", loaded)


def _masks_without_vmap() -> Any:
    """Mask functions take index tensors that broadcast just as well: a graph cannot hold ``vmap``."""
    from transformers import masking_utils

    def expansion(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def mask(*indices: torch.Tensor) -> torch.Tensor:
            found = function(*masking_utils._non_vmap_expansion_sdpa(*indices))
            return found.expand([len(i) for i in indices])

        return mask

    return mock.patch.object(masking_utils, "_vmap_expansion_sdpa", expansion)


def _without_windows() -> Any:
    """Caches of layers with a window hold all tokens in a graph, as :mod:`ecospa_fx.caches` wants them.

    Newer exporters do the same; with older ones a graph gives back a cut cache that forgot how long it was.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    names = ("update", "get_mask_sizes", "get_seq_length")
    return mock.patch.multiple(DynamicSlidingWindowLayer, **{n: getattr(DynamicLayer, n) for n in names})


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """``torch.nn``'s fused inference kernels hide the graph."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def tables_kept(model: nn.Module, name: str) -> Iterator[None]:
    """A table of every module (``"_modules"``, ``"_buffers"``) has the same entries afterwards, in order."""
    before = [(m.__dict__[name], dict(m.__dict__[name])) for m in model.modules()]
    try:
        yield
    finally:
        for table, entries in before:
            if [(k, id(v)) for k, v in table.items()] != [(k, id(v)) for k, v in entries.items()]:
                table.clear()
                table.update(entries)


@contextlib.contextmanager
def numbers_set_aside(model: nn.Module) -> Iterator[Scalars]:
    """Take the buffers of one integer out of the model, and put them back."""
    scalars = list(scalar_buffers(model))
    with tables_kept(model, "_buffers"):
        try:
            for module, name, _ in scalars:
                del module._buffers[name]
            yield scalars
        finally:
            for module, name, _ in scalars:
                module.__dict__.pop(name, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Capture warns of much that its result is checked for, and prints failures that are reported anyway."""
    loggers = [
        logging.getLogger(f"torch.{n}")
        for n in ("export", "_export", "fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
    ]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


@contextlib.contextmanager
def _functional_casts() -> Iterator[None]:
    """A module that is cast inside ``forward`` gives a cast copy: a trace cannot change parameters."""
    original = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        tensors = [*self.parameters(), *self.buffers()]
        if not any(isinstance(t, torch._subclasses.FakeTensor) for t in map(_inner, tensors)):
            return original(self, *args, **kwargs)
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        changes = any(_cast(t, device, dtype) is not t for t in tensors)
        return _cast_copy(self, device, dtype) if changes else self

    with mock.patch.object(nn.Module, "to", to):
        yield


class _AsTraced(TorchFunctionMode):
    """Calls in the form that a trace can follow.

    A list of numbers as an index becomes one tensor: nobody knows its values. ``generator=None`` goes: torch
    knows no symbolic sizes beside a generator.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INDEXED:
            parts = args[1]
            parts = tuple(map(_as_tensor, parts)) if isinstance(parts, tuple) else _as_tensor(parts)
            args = (args[0], parts, *args[2:])
        elif func in _NOISE and kwargs.get("generator", func) is None:
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        return func(*args, **kwargs)


_INDEXED = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
_NOISE = (torch.rand, torch.randn, torch.randint, torch.randperm)


def _as_tensor(part: Any) -> Any:
    numbers = isinstance(part, (list, tuple)) and bool(part)
    if numbers and all(isinstance(n, torch.Tensor) and n.dim() == 0 for n in part):
        return torch.stack(list(part))
    return part


def _inner(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor behind a functional one."""
    functional = isinstance(tensor, torch._subclasses.functional_tensor.FunctionalTensor)
    return torch._from_functional_tensor(tensor.elem) if functional else tensor  # type: ignore[attr-defined]


def _cast(tensor: torch.Tensor, device: Any, dtype: torch.dtype | None) -> torch.Tensor:
    floating = tensor.is_floating_point() or tensor.is_complex()
    return (
        tensor.to(device, dtype if floating else None) if device is not None or dtype is not None else tensor
    )


def _cast_copy(module: nn.Module, device: Any, dtype: torch.dtype | None) -> nn.Module:
    result = copy.copy(module)
    result._modules = {n: m and _cast_copy(m, device, dtype) for n, m in module._modules.items()}
    result._buffers = {}
    result._parameters = {}
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        object.__setattr__(result, name, None if tensor is None else _cast(tensor, device, dtype))
    return result


@contextlib.contextmanager
def _loops_over_every_place(unrolled: list[int]) -> Iterator[None]:
    """A loop over the true places of a mask (the experts that are hit) runs over all of its places.

    Nobody knows at a capture which ones will be true. A place that is not adds nothing wherever the body
    selects by that same mask; that it does so is checked with inputs that hit few places.
    """
    nonzero = torch.Tensor.nonzero
    iterate: Callable[[torch.Tensor], Iterator[torch.Tensor]] = torch.Tensor.__iter__
    written: Callable[[torch.Tensor, str], str] = torch.Tensor.__format__
    places: dict[int, tuple[torch.Tensor, int]] = {}

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = nonzero(self, *args, **kwargs)
        count = static(self.shape[0]) if self.dim() == 1 else None
        if isinstance(found, torch.Tensor) and count is not None:
            places[id(found)] = (found, count)
        return found

    def every(self: torch.Tensor) -> Iterator[torch.Tensor]:
        found, count = places.get(id(self), (None, 0))
        if found is not self or static(self.shape[0]) is not None:
            return iterate(self)
        unrolled.append(count)
        return iter([torch.tensor([i], device=self.device) for i in range(count)])

    def named(self: torch.Tensor, spec: str) -> str:
        value = self.item() if unrolled and self.dim() == 0 else None
        return format(value, spec) if isinstance(value, int) else written(self, spec)

    with contextlib.ExitStack() as stack:
        for name, function in (("nonzero", noted), ("__iter__", every), ("__format__", named)):
            stack.enter_context(mock.patch.object(torch.Tensor, name, function))
        yield
