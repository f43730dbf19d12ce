"""Without: the dense graph in which experts that are gone are never picked, as the reference of a removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from ecospa_fx.labels import Ids
from ecospa_fx.program import Analysis
from ecospa_fx.routers import COMPARED, MARKERS

Run = Callable[[Mapping[str, torch.Tensor], list[Any]], Any]
"""From dense parameters by name and flat inputs to the model's own output."""


def without_experts(analysis: Analysis, dead: Ids, model: nn.Module) -> Run | None:
    """What the masked model computes where whole experts are gone.

    Zeros in a router's row are a score like any other, so this cannot be said with masks of parameters: the
    logits of experts that are gone are minus infinity, and so is what is compared when the highest are taken.

    Args:
        analysis: the dense program and its labels.
        dead: labels that are gone, bool, shape ``[labels]``.
        model: the module that holds the buffers.

    Returns:
        How to run it; None where no expert is gone.
    """
    lost = {r.number: torch.from_numpy(dead[analysis.space.experts(r.number, r.experts)].copy())
            for r in analysis.program.routers if r.refused is None}  # fmt: skip
    if not any(gone.any() for gone in lost.values()):
        return None

    def run(parameters: Mapping[str, torch.Tensor], leaves: list[Any]) -> Any:
        tensors = {**dict(model.named_buffers()), **analysis.program.constants, **parameters}
        return analysis.program.output(_run(analysis.program.graph, tensors, leaves, lost))

    return run


def _run(
    graph: fx.Graph, tensors: Mapping[str, torch.Tensor], leaves: list[Any], lost: Mapping[int, torch.Tensor]
) -> Any:
    env: dict[fx.Node, Any] = {}
    inputs = iter(leaves)
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "placeholder":
            env[node] = next(inputs)
        elif node.op == "get_attr":
            env[node] = tensors[str(node.target)]
        elif node.op == "output":
            return args[0]
        elif node.target in MARKERS:
            env[node] = _never(args, lost) if node.target in COMPARED else args[0]
        else:
            env[node] = node.target(*args, **kwargs)
    raise AssertionError("a graph has an output")


def _never(args: tuple[Any, ...], lost: Mapping[int, torch.Tensor]) -> torch.Tensor:
    x, parts = args[0], args[3] if len(args) > 3 else 1
    gone = lost[args[1]].to(x.device)
    shaped = gone.view(parts, -1) if parts > 1 else gone
    masked: torch.Tensor = x.masked_fill(shaped, -torch.inf)
    return masked
