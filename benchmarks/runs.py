"""Prompts and training steps at several sizes: ``python -m benchmarks.runs``.

One dense LLaMA in eager mode, the same compiled and untouched, and smaller ones: a quarter, half and three
quarters of the coupled parameters gone, widths of any size or multiples, heads of equal or of own widths
(with rotary pairs of their own, or the same in all heads), or whole heads. All run in turn, round by round; a
speed-up is the median over rounds of dense over smaller time. With one thread that is time of the processor,
which a busy machine falsifies least; else that of the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import ecospa_fx
from benchmarks.speed import flops, forward, llama, step
from ecospa_fx.scores import ScoreContext

Row = dict[str, Any]
Run = Callable[[nn.Module], None]


def first_come(context: ScoreContext) -> np.ndarray:
    """Every couple loses its first units, so that all heads of a layer keep the same rotary pairs."""
    scores = np.zeros(context.size)
    for couple in context.graph.couples:
        scores[couple.units] = np.arange(couple.num_units)
    return scores


HEADS: dict[str, dict[str, Any]] = {
    "uniform": {"allocation": "uniform"},
    "same-pair": {"allocation": "uniform", "score": first_come},
    "ragged": {"heads": "ragged"},
    "whole": {"layout": "native", "remove_heads": True, "kinds": ("qk", "vo", "ffn")},
}
"""Settings of :class:`ecospa_fx.PlanSettings`."""


@dataclass(frozen=True)
class Variant:
    """One model: what goes of the coupled parameters, and in what pattern."""

    ratio: float = 0.0
    round_to: int = 1
    heads: str = "uniform"

    def of(self, dense: nn.Module, tokens: torch.Tensor) -> nn.Module:
        """Make it from a copy of the dense model."""
        compiled = ecospa_fx.compile(copy.deepcopy(dense), kwargs={"input_ids": tokens}, check=False)
        if self.ratio:
            compiled(tokens).logits.float().logsumexp(-1).mean().backward()
            compiled.sparsify(None, self.ratio, round_to=self.round_to, **HEADS[self.heads])
            compiled.zero_grad(set_to_none=True)
        return compiled


def variants(options: argparse.Namespace) -> list[Variant]:
    """The untouched model; every ratio with every multiple, and with every way to choose heads."""
    found = [Variant()]
    for ratio in options.ratios:
        found += [Variant(ratio, round_to) for round_to in options.round_to]
        found += [Variant(ratio, 1, heads) for heads in options.heads if heads != "uniform"]
    return found


def make(options: argparse.Namespace) -> tuple[nn.Module, dict[Variant, nn.Module], list[Row]]:
    """The dense model, those that can be made, and why others cannot."""
    torch.manual_seed(0)
    dense = llama(
        options.layers, options.width, options.hidden, options.heads_count, options.kv_heads, 1024, "cpu"
    ).eval()
    tokens = torch.randint(0, 1024, (2, 16))
    models: dict[Variant, nn.Module] = {}
    failed: list[Row] = []
    for variant in variants(options):
        try:
            models[variant] = variant.of(dense, tokens)
        except ecospa_fx.EcoSpaError as error:
            failed.append({**vars(variant), "error": f"{type(error).__name__}: {error}"[:300]})
    return dense, models, failed


def in_turn(models: Mapping[Any, nn.Module], run: Run, rounds: int) -> dict[Any, list[float]]:
    """Seconds of each model in each round; one round before warms up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[Any, list[float]] = {key: [] for key in models}
    for number in range(rounds + 1):
        for key, model in models.items():
            start = clock()
            run(model)
            seconds[key] += [clock() - start] if number else []
    return seconds


def rows(options: argparse.Namespace) -> list[Row]:
    """One row for each model and each kind of run."""
    dense, models, found = make(options)
    prompt = torch.randint(0, 1024, (options.batch, options.prompt))
    sizes = {v: (flops(m, prompt), _bytes(m)) for v, m in [(None, dense), *models.items()]}
    contenders: dict[Any, Any] = {None: dense, **models}
    if options.inductor:
        contenders = {k: torch.compile(m, dynamic=False) for k, m in contenders.items()}
    for name, run in (("prefill", forward), ("training", step)):
        seconds = in_turn(contenders, lambda m, run=run: run(m, prompt), options.rounds)  # type: ignore[misc]
        found += [_row(name, v, seconds, sizes, options.inductor) for v in models]
    return found


def _row(name: str, variant: Variant, seconds: Mapping[Any, list[float]],
         sizes: Mapping[Any, tuple[int, int]], inductor: bool) -> Row:  # fmt: skip
    ratios = [a / b for a, b in zip(seconds[None], seconds[variant], strict=True)]
    predicted, measured = sizes[None][0] / sizes[variant][0], statistics.median(ratios)
    return {
        **vars(variant), "inductor": inductor, "what": name, "threads": torch.get_num_threads(),
        "dense_ms": 1e3 * statistics.median(seconds[None]),
        "ms": 1e3 * statistics.median(seconds[variant]), "speedup": measured, "low": min(ratios),
        "high": max(ratios), "flop_speedup": predicted, "share": measured / predicted,
        "bytes": sizes[variant][1], "bytes_share": sizes[variant][1] / sizes[None][1],
    }  # fmt: skip


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line for each row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runs", description=__doc__)
    for name, value in (("layers", 2), ("width", 1024), ("hidden", 2816), ("heads-count", 16),
                        ("kv-heads", 16), ("batch", 1), ("prompt", 128), ("rounds", 5)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--heads", nargs="+", default=[*HEADS], choices=HEADS)
    parser.add_argument("--inductor", action="store_true", help="all of them, dense too, under torch.compile")
    for row in rows(parser.parse_args(arguments)):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
