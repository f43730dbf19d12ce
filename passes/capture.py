"""Capture: from a module and one call to a :class:`Program`, by ``torch.export``."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ecospa_fx.errors import CaptureError, InputError
from ecospa_fx.passes.normalise import normalise, writes_through_views
from ecospa_fx.passes.unfuse import unfuse
from ecospa_fx.program import Program
from ecospa_fx.signature import unbind
from ecospa_fx.sizes import hint, static

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)

_WAYS = (
    {"strict": False, "deferred": False},
    {"strict": False, "deferred": True},  # sizes that depend on data cannot be guarded, only asserted
    {"strict": True, "deferred": False},
)


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Program:
    """Capture one signature of ``model``.

    Batch and sequence sizes stay symbolic where the model allows it. The model itself, its mode and its
    parameters are left as they are.

    Args:
        model: the module; its parameters may live on the meta device.
        inputs: arguments of its ``forward`` by name (see :func:`ecospa_fx.signature.bind`).

    Returns:
        The normalised program.

    Raises:
        CaptureError: the model cannot be captured; the message shows the line in its code.
    """
    failures = []
    for variant in _variants(model, inputs):
        for ways in _WAYS:
            try:
                return from_exported(_export(model, variant, **ways), model)
            except (CaptureError, InputError):
                raise
            except Exception as error:
                failures.append(error)
    raise CaptureError(_explain(model, failures[0])) from failures[0]


def _variants(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs with unambiguous sizes first, then as they are."""
    unlike = _unlike_sizes(model, inputs)
    if unlike is not None:
        yield unlike
    yield dict(inputs)


def _unlike_sizes(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same inputs with prime batch and sequence sizes, so that no two axes can be confused."""
    tensors = [t for t in pytree.tree_leaves(dict(inputs)) if isinstance(t, torch.Tensor) and t.dim() > 0]
    batches = {t.shape[0] for t in tensors}
    if len(batches) != 1 or not tensors:
        return None
    taken = {n for p in model.parameters() for n in p.shape} | {n for t in tensors for n in t.shape[1:]}
    sizes = {(0, batch): next(p for p in _PRIMES if p not in taken) for batch in batches}
    tokens = {t.shape[1] for t in tensors if t.dim() == 2 and not t.is_floating_point()}
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

    return pytree.tree_map(resize, dict(inputs))


def _export(model: nn.Module, inputs: dict[str, Any], strict: bool, deferred: bool) -> ExportedProgram:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        for context in _transformers_patches(model, inputs):
            stack.enter_context(context)
        stack.enter_context(_flat_signature(model, inputs))
        stack.enter_context(_no_fast_path())
        shapes = _dynamic_shapes(inputs)
        return torch.export.export(
            model,
            (),
            inputs,
            dynamic_shapes=shapes,
            strict=strict,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _dynamic_shapes(inputs: Mapping[str, Any]) -> Any:
    def spec(leaf: Any) -> Any:
        return dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None

    leaves, tree = pytree.tree_flatten(dict(inputs))
    return _mirror(tree, iter([spec(x) for x in leaves]))


def _mirror(tree: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    """The dynamic-shapes tree: dicts stay dicts, other containers become lists."""
    if tree.is_leaf():
        return next(leaves)
    children = [_mirror(c, leaves) for c in tree.children()]
    if tree.type is dict:
        return dict(zip(tree.context, children, strict=True))
    return tuple(children) if tree.type is tuple else children


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Capture warns about many things that its result is checked for anyway."""
    loggers = [
        logging.getLogger(n)
        for n in ("torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")
    ]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


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
def _flat_signature(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Let ``forward`` have just the arguments of this call: ``**kwargs`` cannot be captured."""
    original = model.forward
    own = "forward" in model.__dict__

    def forward(**named: Any) -> Any:
        args, kwargs = unbind(named)
        return original(*args, **kwargs)

    parameters = [inspect.Parameter(k, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for k in inputs]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    model.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            model.forward = original  # type: ignore[method-assign]
        else:
            del model.forward


def _transformers_patches(model: nn.Module, inputs: dict[str, Any]) -> list[Any]:
    """What transformers' own exporter does to make its models traceable, taken from it."""
    try:
        from transformers import PreTrainedModel
        from transformers.exporters import exporter_dynamo as dynamo
        from transformers.exporters import utils
    except ImportError:
        return []
    if not any(isinstance(m, PreTrainedModel) for m in model.modules()):
        return []
    dynamo.register_cache_pytrees_for_model(model)
    with torch.no_grad():
        utils.precompute_export_inputs(model, inputs)
    return [utils.apply_patches("dynamo"), dynamo.reset_model_state(model)]


def from_exported(exported: ExportedProgram, model: nn.Module | None = None) -> Program:
    """A program from what ``torch.export`` returned.

    Args:
        exported: the exported program.
        model: the module whose parameter names count (the exported program's own otherwise).
    """
    if writes_through_views(exported.graph):
        exported = exported.run_decompositions({})  # functional form: every write makes a new value
    unlifted = exported.module(check_guards=False)
    constants: dict[str, torch.Tensor] = {}
    owner = model if model is not None else unlifted
    aliases = _canonical_names(owner)
    known = dict(owner.named_parameters(remove_duplicate=False))
    buffers = dict(owner.named_buffers(remove_duplicate=False))
    for node in unlifted.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            node.target = aliases.get(name, name)
            if name not in known and name not in buffers:
                value = _attribute(unlifted, name)
                if isinstance(value, torch.Tensor):
                    constants[name] = value
    graph = normalise(unlifted)
    unfuse(graph)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    parameters = {n: tuple(p.shape) for n, p in known.items() if n in read}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    out_spec = exported.call_spec.out_spec
    if out_spec is None:
        raise CaptureError("the exported program does not say how its outputs are structured")
    return Program(
        graph, constants, parameters, out_spec, tuple(n.name for n in placeholders), _guard(placeholders)
    )


def _attribute(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tied tensor → its first name."""
    first: dict[int, str] = {}
    result = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        result[name] = first.setdefault(id(tensor), name)
    return result


def _guard(placeholders: list[fx.Node]) -> Callable[[list[Any]], None]:
    """A check of flat inputs against the sizes that capture had to fix."""
    expected = [(n.name, n.meta.get("val")) for n in placeholders]

    def guard(inputs: list[Any]) -> None:
        sizes: dict[str, int] = {}
        for (name, want), have in zip(expected, inputs, strict=True):
            if isinstance(want, torch.Tensor):
                _check_tensor(name, want, have, sizes)
            elif (
                not isinstance(want, (torch.SymInt, torch.SymFloat, torch.SymBool))
                and want is not None
                and want != have
            ):
                raise InputError(
                    f"input {name!r} was {want!r} when the model was captured, and is {have!r} now"
                )

    return guard


def _check_tensor(name: str, want: torch.Tensor, have: Any, sizes: dict[str, int]) -> None:
    if not isinstance(have, torch.Tensor):
        raise InputError(f"input {name!r} must be a tensor, not {type(have).__name__}")
    if have.dim() != want.dim():
        raise InputError(f"input {name!r} must have {want.dim()} axes, not shape {tuple(have.shape)}")
    for axis, (w, h) in enumerate(zip(want.shape, have.shape, strict=True)):
        only = static(w)
        fixed = sizes.setdefault(str(w), int(h)) if only is None else only
        if fixed != h:
            why = "another input has" if only is None else "the capture had to fix"
            raise InputError(
                f"input {name!r} has size {h} on axis {axis}, but {why} size {fixed} there; "
                f"call with that size, or compile the model anew with inputs of the new one (captured with {tuple(hint(n) for n in want.shape)})"
            )


def _explain(model: nn.Module, error: Exception) -> str:
    text = str(error)
    head = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = _user_frame(error) or _frame_in(text)
    message = f"{type(model).__name__} cannot be captured: {head}"
    if where:
        message += f"\n  at {where}"
    return f"{message}\n  {_remedy(text)}"


def _remedy(text: str) -> str:
    hints = {
        "data-dependent": "a Python branch or size depends on the values of a tensor: use torch.where, torch.cond or "
        "a mask there, or torch._check to state what always holds",
        ".item()": "a tensor's value is read into Python: keep it a tensor",
        "unexpected keyword": "the inputs do not match forward()",
        "missing": "the inputs do not match forward()",
    }
    low = text.lower()
    return next(
        (v for k, v in hints.items() if k in low),
        "see the error above; torch.export must be able to trace the model",
    )


def _frame_in(text: str) -> str:
    import re

    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)', text)
    found = [f for f in found if "/torch/" not in f[0]]
    return "{0}:{1}: {3}".format(*found[-1]) if found else ""


def _user_frame(error: BaseException) -> str:
    """The innermost line of the traceback that is the user's, not torch's."""
    import traceback

    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in f.filename and __file__ != f.filename
    ]
    frames = [f for f in frames if "ecospa_fx" not in f.filename and "/passes/capture" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
