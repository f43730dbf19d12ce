"""Capture: from a module and one call to a :class:`Program`, by ``torch.export``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ecospa_fx.collecting import uncollected
from ecospa_fx.diagnosis import explain_failure
from ecospa_fx.errors import BackwardError, CaptureError
from ecospa_fx.functions import kept_whole
from ecospa_fx.guard import input_guard, input_names, value_guard
from ecospa_fx.labels import Nature
from ecospa_fx.passes.cheaply import cheaply
from ecospa_fx.passes.check import check_capture
from ecospa_fx.passes.inline import inline
from ecospa_fx.passes.kernels import unmasked
from ecospa_fx.passes.once import Repeats
from ecospa_fx.passes.patches import Scalars, numbers_set_aside, quiet, traceable
from ecospa_fx.passes.prepare import preparation
from ecospa_fx.passes.reads import UnrolledError
from ecospa_fx.passes.simplify import simplify
from ecospa_fx.passes.turn import turn
from ecospa_fx.passes.unfuse import unfuse
from ecospa_fx.passes.unlift import unlift
from ecospa_fx.passes.ways import Way, constants_known, note, reads_values, values_followed, ways
from ecospa_fx.program import Program
from ecospa_fx.signature import state_leaves, unbind


def capture(
    model: nn.Module, inputs: Mapping[str, Any], accept: Callable[[Program], None] = lambda _: None
) -> Program:
    """Capture one signature of ``model``.

    Batch and sequence sizes stay symbolic where the model allows it. The model itself, its mode and its
    parameters are left as they are.

    Args:
        model: the module; its parameters may live on the meta device.
        inputs: arguments of its ``forward`` by name (see :func:`ecospa_fx.signature.bind`).
        accept: raises where a program does not do; the next way to capture is tried then.

    Returns:
        The normalised program.

    Raises:
        CaptureError: the model cannot be captured; the message shows the line in its code.
    """
    failures: list[Exception] = []
    for way in ways(model, inputs):
        if way.idle(failures[-1] if failures else None):
            continue
        try:
            program = _accepted(model, way, inputs, accept)
            note(model, way)
            return program
        except Exception as error:
            telling = isinstance(error, BackwardError | UnrolledError)
            if telling or (way.inputs is inputs and not way.followed):
                failures.append(error)
    wrong = next((f for f in failures if isinstance(f, CaptureError)), None)
    raise wrong or CaptureError(explain_failure(model, failures[0])) from failures[0]


def _accepted(
    model: nn.Module, way: Way, inputs: Mapping[str, Any], accept: Callable[[Program], None]
) -> Program:
    """A program that will do; every block is followed only if it takes that."""
    repeats = None if way.fixed or way.scalars or way.strict or way.followed else Repeats(model)
    try:
        return _tried(model, way, inputs, accept, repeats)
    except Exception as error:
        if repeats is None or not repeats.used or reads_values(error):
            raise
    return _tried(model, way, inputs, accept, None)


def _tried(
    model: nn.Module,
    way: Way,
    inputs: Mapping[str, Any],
    accept: Callable[[Program], None],
    repeats: Repeats | None,
) -> Program:
    program, unrolled = _captured(model, way, repeats)
    accept(program)
    if unrolled and not way.fixed:
        _check_loops(model, program, inputs)
    return program


@uncollected()
def _captured(model: nn.Module, way: Way, repeats: Repeats | None) -> tuple[Program, list[int]]:
    """The program, and the lengths of loops over masks that were unrolled for it."""
    prepare = preparation(model, way.inputs)
    inputs = prepare(way.inputs)
    with quiet():
        with repeats.replacing() if repeats else contextlib.nullcontext():
            exported, unrolled = _export(model, inputs, way)
            program = from_exported(exported, model, repeats, way.followed)
        _note_inputs(program, [inputs[name] for name in way.fixed])
    return replace(program, prepare=prepare, guard=value_guard(program.guard, inputs, way.fixed)), unrolled


def _note_inputs(program: Program, fixed: list[torch.Tensor]) -> None:
    """Constants that stand for inputs say as much about labels as inputs do."""
    for node in program.graph.nodes:
        value = program.constants.get(str(node.target)) if node.op == "get_attr" else None
        alike = (f for f in fixed if value is not None and (f.shape, f.dtype) == (value.shape, value.dtype))
        if any(torch.equal(f.to(value.device), value) for f in alike):  # type: ignore[union-attr,arg-type]
            node.meta["nature"] = Nature.INDEX


def _check_loops(model: nn.Module, program: Program, inputs: Mapping[str, Any]) -> None:
    """Compare with the model where the mask of an unrolled loop is true at few places."""
    if not any(p.is_meta for p in model.parameters()):
        check_capture(model, program, {name: _alike(value) for name, value in inputs.items()}, True)


def _alike(value: Any) -> Any:
    """Every token as the first one: all are routed alike. Masks stay."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() != (value.dim() == 3):
        return value
    if not value.is_floating_point() and (value.dim() != 2 or int(value.max()) < 2):
        return value
    return value[:1, :1].expand_as(value).contiguous()


def _export(model: nn.Module, inputs: dict[str, Any], way: Way) -> tuple[ExportedProgram, list[int]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        unrolled = stack.enter_context(traceable(model, way.strict, way.patched))
        scalars = stack.enter_context(numbers_set_aside(model)) if way.scalars else None
        stack.enter_context(_flat_signature(model, inputs, way.fixed, scalars))
        if way.fixed or way.scalars:
            stack.enter_context(constants_known())
        if way.followed:
            stack.enter_context(values_followed())
        if way.whole:
            stack.enter_context(kept_whole())
        if not way.strict:
            stack.enter_context(cheaply())
        exported = torch.export.export(
            model,
            (),
            inputs,
            dynamic_shapes=_dynamic_shapes(inputs) if way.dynamic else None,
            strict=way.strict,
            prefer_deferred_runtime_asserts_over_guards=way.deferred,
        )
    return exported, unrolled


def _dynamic_shapes(inputs: Mapping[str, Any]) -> Any:
    leaves, tree = pytree.tree_flatten(dict(inputs))
    return _mirror(tree, iter([_free(x, s) for x, s in zip(leaves, state_leaves(tree), strict=True)]))


def _free(leaf: Any, state: bool) -> dict[int, Any] | None:
    """Axes whose sizes stay symbolic: all, but of images and videos only those before the channels.

    A graph for every height and width takes minutes to trace, and most models allow but one. Keys and values
    of a cache are free in batch and length: heads and widths are the model's, whatever else reads them.
    """
    if not isinstance(leaf, torch.Tensor):
        return None
    if state and leaf.dim() == 4:
        return dict.fromkeys((0, 2), Dim.AUTO)
    image = leaf.dim() > 3 and leaf.is_floating_point() and not state and leaf.shape[-3] > 1
    return dict.fromkeys(range(leaf.dim() - 3 if image else leaf.dim()), Dim.AUTO)


def _mirror(tree: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    """The dynamic-shapes tree: dicts stay dicts, other containers become lists."""
    if tree.is_leaf():
        return next(leaves)
    children = [_mirror(c, leaves) for c in tree.children()]
    if tree.type is dict:
        return dict(zip(tree.context, children, strict=True))
    return tuple(children) if tree.type is tuple else children


@contextlib.contextmanager
def _flat_signature(
    model: nn.Module,
    inputs: Mapping[str, Any],
    fixed: frozenset[str] = frozenset(),
    scalars: Scalars | None = None,
) -> Iterator[None]:
    """Let ``forward`` have just the arguments of this call: ``**kwargs`` cannot be captured.

    Inputs named in ``fixed``, and the buffers in ``scalars``, become constants of the trace.
    """
    numbers = [(m, n, v.tolist(), v.dtype, v.device) for m, n, v in scalars or []]
    original = model.forward
    own = "forward" in model.__dict__
    known = {name: (inputs[name].tolist(), inputs[name].dtype, inputs[name].device) for name in fixed}

    def forward(**named: Any) -> Any:
        for module, name, number, dtype, device in numbers:
            module.__dict__[name] = torch.tensor(number, dtype=dtype, device=device)
        values = {n: torch.tensor(v, dtype=dtype, device=device) for n, (v, dtype, device) in known.items()}
        args, kwargs = unbind({**named, **values})
        return original(*args, **kwargs)

    parameters = [inspect.Parameter(k, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for k in inputs]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        if own:
            model.forward = original
        else:
            del model.forward


def from_exported(
    exported: ExportedProgram,
    model: nn.Module | None = None,
    repeats: Repeats | None = None,
    followed: bool = False,
) -> Program:
    """A program from what ``torch.export`` returned.

    Args:
        exported: the exported program.
        model: the module whose parameter names count (the exported program's own otherwise).
        repeats: the calls of blocks that were followed, where others only stand for themselves.
        followed: its branches went as its example went, see :class:`~ecospa_fx.passes.ways.Way`.

    Raises:
        UnevenError: calls that were taken to be alike are not.
    """
    owner = model if model is not None else exported.module(check_guards=False)
    graph, constants = unlift(exported, owner, followed)
    if repeats and repeats.used:
        inline(graph, repeats, constants)
    simplify(graph, constants)
    unmasked(graph)
    turn(graph)
    unfuse(graph)
    turn(graph)
    return _program(exported, owner, graph, constants)


def _program(
    exported: ExportedProgram, owner: nn.Module, graph: fx.Graph, constants: dict[str, torch.Tensor]
) -> Program:
    """What the graph reads and how its inputs and outputs are structured, beside it."""
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    known = owner.named_parameters(remove_duplicate=False)
    parameters = {n: tuple(p.shape) for n, p in known if n in read}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    out_spec = exported.call_spec.out_spec
    if out_spec is None:
        raise CaptureError("the exported program does not say how its outputs are structured")
    state_in = tuple(state_leaves(exported.call_spec.in_spec)) if exported.call_spec.in_spec else ()
    return Program(
        graph,
        constants,
        parameters,
        out_spec,
        tuple(n.name for n in placeholders),
        input_guard(placeholders, state_in, input_names(placeholders, exported.call_spec.in_spec)),
        state_in=state_in,
        state_out=tuple(state_leaves(out_spec)),
    )
