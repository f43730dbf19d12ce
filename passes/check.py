"""Check: what can be compiled, and whether a capture computes what the model does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ecospa_fx.errors import BackwardError, CaptureError
from ecospa_fx.executable import Executable
from ecospa_fx.masked import floats, fresh, gradient_pairs, largest, projected_gradients, repeatable
from ecospa_fx.modes import modes_kept
from ecospa_fx.passes.kernels import kernels
from ecospa_fx.program import Program
from ecospa_fx.signature import unbind

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

_BACKWARD = 10.0  # a backward pass adds up more round-off than a forward pass
_ENTRIES = 1 << 20


def tolerance(tensors: list[torch.Tensor]) -> float:
    """Relative difference that round-off explains, by the coarsest dtype at hand."""
    return max((_TOLERANCE.get(t.dtype, 1e-4) for t in tensors), default=1e-4)


def check_supported(model: nn.Module) -> None:
    """Refuse parameters whose entries cannot be removed one by one.

    Raises:
        CaptureError: some parameters are quantised, sparse or nested; all are listed.
    """
    odd = [f"{n} ({_oddity(p)})" for n, p in model.named_parameters() if _oddity(p)]
    if odd:
        more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
        raise CaptureError(
            f"parameters that are not plain dense tensors cannot be sparsified: {', '.join(odd[:8])}{more}; "
            "dequantise or densify the model first, and quantise the smaller one"
        )


def _oddity(p: torch.Tensor) -> str:
    if p.layout != torch.strided:
        return f"sparse layout {p.layout}"
    if p.is_quantized or not (p.is_floating_point() or p.is_complex()):
        return f"quantised, {p.dtype}"
    inner = type(p.data)
    return (
        ""
        if inner in (torch.Tensor, nn.Parameter) or "DTensor" in inner.__name__
        else f"quantised, {inner.__name__}"
    )


def check_capture(model: nn.Module, program: Program, inputs: Mapping[str, Any], deterministic: bool) -> None:
    """Compare a capture with the eager model on the same inputs.

    Args:
        model: the eager model, in the mode of the capture.
        program: the capture.
        inputs: the call's arguments by name.
        deterministic: compare without dropout, in evaluation mode (where the capture had to skip
            random branches of the training mode).

    Raises:
        CaptureError: outputs differ by more than round-off.
    """
    graph = without_dropout(program.graph) if deterministic else program.graph
    args, kwargs = unbind(fresh(inputs))
    with modes_kept(model):
        if deterministic:
            model.eval()
        with repeatable(model):
            eager = floats(model(*args, **kwargs))
        with repeatable(model):
            flat = Executable(kernels(graph)[0], program.constants, model)(program.leaves(inputs))
    found = floats(pytree.tree_unflatten(flat, program.out_spec))
    _check_values(model, eager, found)
    _check_gradients(model, eager, found)


def _check_values(model: nn.Module, expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    _, relative = largest(list(zip(expected, found, strict=False)))
    if len(expected) != len(found) or not relative <= tolerance(expected):
        raise CaptureError(
            f"the captured graph of {type(model).__name__} computes something else than the model "
            f"(relative difference {relative:.2e}); torch.export took a branch that these inputs do not take "
            "in eager mode. Pass other example inputs (for instance a mask that masks something), "
            "or check=False to accept it"
        )


def _check_gradients(model: nn.Module, expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """The graph trains what the eager model trains, and in the same way."""
    learning, custom = _reached(expected)
    lost = learning - _reached(found)[0]
    parameters = {n: p for n, p in model.named_parameters() if id(p) in learning}
    names = [n for n, p in parameters.items() if id(p) in lost]
    if not names:
        names = _differing(parameters if custom else _few(parameters), expected, found)
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        culprit = " and ".join(sorted(custom)) or "a region without gradients"
        raise BackwardError(
            f"the captured graph of {type(model).__name__} would not train {', '.join(names[:4])}{more} as "
            f"the model does: torch.export follows the forward of {culprit}, not its own backward. Call "
            "plain operators there, or compile under torch.no_grad() to run the model without training"
        )


def _few(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The smallest parameters: norms and biases of all layers, whose gradients take little memory."""
    by_size = sorted(parameters, key=lambda n: parameters[n].numel())
    totals = itertools.accumulate(parameters[n].numel() for n in by_size)
    chosen = {n for n, total in zip(by_size, totals, strict=True) if total <= _ENTRIES} or set(by_size[:1])
    return {n: p for n, p in parameters.items() if n in chosen}


def _differing(
    parameters: Mapping[str, nn.Parameter], expected: list[torch.Tensor], found: list[torch.Tensor]
) -> list[str]:
    """Parameters whose gradients differ by more than round-off."""
    try:
        reference = projected_gradients(expected, parameters)
    except RuntimeError:  # the eager model cannot be trained, or not in this way (reentrant checkpoints)
        return []
    try:
        gradients = projected_gradients(found, parameters)
    except RuntimeError:
        return list(parameters)
    pairs = gradient_pairs(reference, {n: g for n, g in gradients.items() if n in reference})
    absolute, relative = largest(list(pairs.values()))
    allowed = _BACKWARD * tolerance(list(reference.values()))
    if relative <= allowed:
        return []
    return [n for n, pair in pairs.items() if not largest([pair])[0] <= allowed * absolute / relative]


def _reached(outputs: list[torch.Tensor]) -> tuple[set[int], set[str]]:
    """Identities of the leaves that a gradient of the outputs reaches, and custom functions on its way."""
    todo = [o.grad_fn for o in outputs if o.grad_fn is not None]
    seen, leaves, custom = set(todo), set(), set()
    while todo:
        step = todo.pop()
        if issubclass(type(step), torch.autograd.function.BackwardCFunction):
            custom.add(type(step).__name__.removesuffix("Backward"))
        elif hasattr(step, "variable"):
            leaves.add(id(step.variable))
        for following, _ in step.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return leaves, custom


def without_dropout(graph: fx.Graph) -> fx.Graph:
    """A copy in which nothing is dropped at random."""
    plain = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        env[node] = copied = plain.node_copy(node, env.__getitem__)
        target = str(node.target)
        if target.startswith(("aten.dropout", "aten.native_dropout")) and len(copied.args) == 3:
            copied.args = (*copied.args[:2], False)
        elif "scaled_dot_product_attention" in target:
            if len(copied.args) > 4:
                copied.args = (*copied.args[:4], 0.0, *copied.args[5:])
            elif "dropout_p" in copied.kwargs:
                copied.kwargs = {**copied.kwargs, "dropout_p": 0.0}
    return plain
