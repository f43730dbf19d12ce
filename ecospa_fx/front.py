"""The front door: compile a model, or load one that was saved smaller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import CaptureError
from ecospa_fx.storage import fill, load_removal, load_tensors, unique_tensors
from ecospa_fx.twin import PRE_HOOKS, twin_of


def compile(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    check: bool = True,
    blocks: Collection[str] | None = None,
) -> CompiledModel:
    """Compile a model so that it can become smaller.

    Args:
        model: a module, a ``torch.fx.GraphModule``, or a ``torch.export.ExportedProgram``.
        args: example inputs. Without any the model is captured at its first call.
        kwargs: example keyword inputs.
        check: compare every capture once with the eager model, and refuse one that differs.
        blocks: names of the modules that are called, so that hooks, ``fully_shard`` and checkpointing act on
            them; by default the outermost ones that repeat. An empty list makes one flat graph.

    Returns:
        A module with the same inputs, outputs and parameter names, which shares the parameters.

    Raises:
        CaptureError: the model cannot be captured, or holds quantised or sparse parameters.

    Example:
        >>> import torch, ecospa_fx
        >>> ffn = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
        >>> compiled = ecospa_fx.compile(ffn, args=(torch.randn(5, 8),))
        >>> [(c.kind, c.num_units) for c in compiled.couplings.couples]
        [('ffn', 32)]
    """
    if isinstance(model, ExportedProgram):
        if not args and not kwargs and model.example_inputs:
            args, kwargs = model.example_inputs
        model = model.module(check_guards=False)
    if isinstance(model, fx.GraphModule):
        model = twin_of(model, PRE_HOOKS)  # those of an export insist on how arguments were passed
    if not isinstance(model, nn.Module):
        raise CaptureError(f"compile takes a module or an exported program, not {type(model).__name__}")
    return CompiledModel(model, args, kwargs, check, blocks)


def load(path: str | Path, model: nn.Module, *, check: bool = True) -> CompiledModel:
    """Read what :meth:`CompiledModel.save` wrote.

    Args:
        path: the folder.
        model: a model of the original, dense architecture; its values do not matter, and it may live on
            the meta device. It is compiled and shrunk in place.
        check: as for :func:`compile`.

    Raises:
        LoadError: the files are missing, damaged, or for another model. The model is then as it was.
    """
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    removal = load_removal(path, shapes)
    expected = {n: (removal.shape(n, tuple(t.shape)), t.dtype) for n, t in unique_tensors(model).items()}
    tensors = load_tensors(path, expected)
    compiled = CompiledModel(model, check=check)
    compiled.carry_out(removal)
    fill(compiled, tensors)
    return compiled
