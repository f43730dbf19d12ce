"""Memory of a round above the steady state: ``python -m benchmarks.rounds``.

A LLaMA in training, with gradients and moments in place, loses half of its coupled parameters. Storages that
``torch`` makes are counted while they live, for each stage by itself, and so is what the process holds.
The goal: no stage takes more than twice what the largest couple, with gradients and moments, holds.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

import ecospa_fx
from benchmarks.peers.case import fresh_peak, peak
from benchmarks.scale import Live, tensors
from benchmarks.speed import llama
from ecospa_fx import CompiledModel

Row = dict[str, Any]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "Adafactor": torch.optim.Adafactor,
}
"""Moments that follow entry by entry, two and one; and factored ones."""


def measure(name: str, options: argparse.Namespace) -> Row:
    """One optimizer."""
    model, optimizer, tokens = _trained(name, options)
    held = sum(t.numel() * t.element_size() for t in tensors(model, optimizer))
    largest = largest_couple(model, optimizer)
    row: Row = {"optimizer": name, "steady_mib": held / 2**20, "largest_couple_mib": largest / 2**20}
    fisher = ecospa_fx.FisherAccumulator(model)
    found: dict[str, Any] = {}
    stages: dict[str, Callable[[], Any]] = {
        "reading": fisher.update,
        "planning": lambda: found.setdefault("plan", model.plan(fisher, 0.5, score=options.score)),
        "cutting": lambda: model.apply(found["plan"], optimizer),
    }
    for stage, work in stages.items():
        row |= {f"{stage}_{k}": v for k, v in above(work, model, optimizer).items()}
    counted = max(row[f"{stage}_above_mib"] for stage in stages)
    with torch.no_grad():
        model(tokens)
    return row | {"above_mib": counted, "over_largest_couple": counted / row["largest_couple_mib"],
                  "over_model": counted * 2**20 / (4 * options.parameters)}  # fmt: skip


def _trained(name: str, options: argparse.Namespace) -> tuple[CompiledModel, Any, torch.Tensor]:
    """A model after its first step, with the gradients of the next one."""
    torch.manual_seed(0)
    dense = llama(options.layers, options.width, options.hidden, 8, 8, options.vocabulary, "cpu")
    options.parameters = sum(p.numel() for p in dense.parameters())
    tokens = torch.randint(0, options.vocabulary, (1, 16))
    model = ecospa_fx.compile(dense, args=(tokens,), check=False)
    _ = model.couplings  # made once, not in every round
    optimizer = OPTIMIZERS[name](model.parameters())
    for _step in range(2):
        model(tokens).logits.logsumexp(-1).mean().backward()
        if not _step:
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer, tokens


def largest_couple(model: CompiledModel, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the feed-forward couple that holds most: its parameters with gradients and moments.

    Couples of attention hold one head's rows of their weights, and less than a feed-forward couple.
    """
    sizes = []
    for couple in model.couplings.couples:
        if couple.kind == "ffn":
            names = {weight.parameter for weight in couple.weights}
            sizes.append(sum(_bytes(model.get_parameter(n), optimizer) for n in names))
    return max(sizes)


def _bytes(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
    held = [parameter, parameter.grad, *optimizer.state[parameter].values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))


def above(work: Callable[[], Any], model: CompiledModel, optimizer: torch.optim.Optimizer) -> Row:
    """MiB that a stage takes beyond what lives before it: counted, and resident."""
    gc.collect()
    live = Live("cpu", tensors(model, optimizer))
    before, resident = live.now, fresh_peak()
    with live:
        work()
    return {"above_mib": (live.peak - before) / 2**20, "resident_above_mib": (peak() - resident) * 2**10}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each optimizer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    for name, value in (("layers", 8), ("width", 512), ("hidden", 1408), ("vocabulary", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--score", default="l1_product")
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS], choices=OPTIMIZERS)
    options = parser.parse_args(arguments)
    for name in options.optimizers:
        row = measure(name, options)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
