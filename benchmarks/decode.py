"""Prompts, tokens and training steps: ``python -m benchmarks.decode``.

A dense model in eager mode, the same compiled and untouched, and with half of the coupled parameters gone.
All three run in turn, so that whatever else the machine does falls on all of them; ratios are medians over
such rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ecospa_fx
from benchmarks.speed import flops, llama, machine, step
from ecospa_fx.testing import random_removal

Row = dict[str, Any]
Run = Callable[[Any], float]
_NEW = 8  # tokens


def contenders(options: argparse.Namespace) -> dict[str, Any]:
    """The dense model, the compiled one, and the smaller one."""
    dense: Any = llama(
        options.layers, options.width, options.hidden, options.heads, options.kv_heads, 4096, "cpu"
    ).eval()
    dense.config.use_cache = True
    compiled = ecospa_fx.compile(dense)
    smaller = ecospa_fx.compile(copy.deepcopy(dense))
    tokens = torch.zeros(2, 8, dtype=torch.long)
    for model in (compiled, smaller):
        model(input_ids=tokens)
    smaller.apply(random_removal(smaller, options.ratio, seed=0))
    return {"dense": dense, "compiled": compiled, "smaller": smaller}


def runs(batch: int, options: argparse.Namespace) -> dict[str, Run]:
    """What is timed, as functions of a model that return seconds."""
    tokens = torch.randint(3, 4096, (batch, options.prompt))
    short = torch.randint(3, 4096, (batch, options.training))
    return {
        "prefill": lambda model: _prompt(model, tokens)[0],
        "token": lambda model: _tokens(model, tokens),
        "training": lambda model: _seconds(lambda: step(model, short)),
    }


def _prompt(model: Any, tokens: torch.Tensor) -> tuple[float, Any]:
    """Seconds for a prompt, and its cache."""
    found = []
    with torch.no_grad():
        seconds = _seconds(
            lambda: found.append(model(tokens, attention_mask=torch.ones_like(tokens), use_cache=True))
        )
    return seconds, found[0].past_key_values


def _tokens(model: Any, tokens: torch.Tensor) -> float:
    """Seconds for one more token, called as ``generate`` does."""
    _, past = _prompt(model, tokens)
    length = tokens.shape[1] + 1 + torch.arange(_NEW)

    def run() -> None:
        with torch.no_grad():
            for n in length.tolist():
                model(
                    tokens[:, :1], past_key_values=past, attention_mask=tokens.new_ones(len(tokens), n),
                    position_ids=torch.full((len(tokens), 1), n - 1), use_cache=True,
                )  # fmt: skip

    return _seconds(run) / _NEW


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(models: dict[str, Any], timed: dict[str, Run], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run of every model, in turn; the first round captures, and does not count."""
    seconds: dict[str, dict[str, list[float]]] = {n: {m: [] for m in models} for n in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            for which, model in models.items():
                found = run(model)
                seconds[name][which] += [found] if number else []
    return seconds


def rows(batch: int, models: dict[str, Any], options: argparse.Namespace) -> list[Row]:
    """One row for prompt, token and training step each."""
    predicted = flop_speedup(models, options)
    result = []
    for name, seconds in measure(models, runs(batch, options), options.rounds).items():
        row: Row = {"what": name, "batch": batch, "flop_speedup": predicted}
        for model, times in seconds.items():
            row[f"{model}_ms"] = 1e3 * statistics.median(times)
        for model in ("compiled", "smaller"):
            ratios = [a / b for a, b in zip(seconds["dense"], seconds[model], strict=True)]
            row[f"{model}_speedup"] = statistics.median(ratios)
            row[f"{model}_low"], row[f"{model}_high"] = min(ratios), max(ratios)
        result.append(row)
    return result


def flop_speedup(models: dict[str, Any], options: argparse.Namespace) -> float:
    """What the multiplications of a prompt predict."""
    tokens = torch.zeros(1, options.prompt, dtype=torch.long)
    return flops(models["dense"], tokens) / flops(models["smaller"], tokens)


def main() -> None:
    """Print one JSON line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 2), ("width", 1024), ("hidden", 2816), ("heads", 16), ("kv-heads", 4),
                        ("prompt", 128), ("training", 64), ("rounds", 7)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ratio", type=float, default=0.5, help="of the coupled parameters that goes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path, help="append the results to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    models = contenders(options)
    for batch in options.batches:
        for row in rows(batch, models, options):
            settings = {k: v for k, v in vars(options).items() if k not in ("json", "batches")}
            row |= {
                "command": "python -m benchmarks.decode",
                **settings,
                **machine(),
                "load": os.getloadavg()[0],
            }
            line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            print(line, flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
