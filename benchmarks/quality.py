"""Perplexity of SmolLM2-135M by score, allocation and ratio: ``python -m benchmarks.quality``.

Units are removed in one shot, without any training afterwards. See ``benchmarks/smollm2.py`` for what to
install.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ecospa_fx
from benchmarks.smollm2 import load_smollm2, perplexity, split
from ecospa_fx.fisher import GradientStatistics
from ecospa_fx.passes.plan import plan
from ecospa_fx.passes.score import score as score_units
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.scores import ActivationStatistics, ScoreContext, registered_scores

Row = dict[str, Any]
ALLOCATIONS = ("ecospa", "uniform", "global")


@dataclass(frozen=True, eq=False)
class Evidence:
    """A model, and what calibration data say about it."""

    compiled: ecospa_fx.CompiledModel
    gradients: GradientStatistics
    activations: ActivationStatistics

    def plan(self, score: str, allocation: str, ratio: float, seed: int) -> Plan:
        graph, removal = self.compiled.couplings, self.compiled.removal
        parameters, generator = dict(self.compiled.named_parameters()), np.random.default_rng(seed)
        context = ScoreContext(
            graph, removal, parameters, self.gradients, self.activations, generator=generator
        )
        scores, partition = score_units(score, context), self.compiled.analysis.partition
        settings = PlanSettings(allocation)
        return plan(graph, partition, removal, scores, self.gradients.importance,
                    ratio=ratio, settings=settings, score=score)  # fmt: skip


def gather(compiled: ecospa_fx.CompiledModel, tokens: torch.Tensor) -> Evidence:
    """One sample of Eq. 6 for each document, and one pass for activations."""
    accumulator = ecospa_fx.FisherAccumulator(compiled)
    for document in tokens.split(1):
        compiled.zero_grad()
        logits = compiled(input_ids=document).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), document[:, 1:].flatten()).backward()
        accumulator.update()
    compiled.zero_grad()
    activations = compiled._calibrated({"input_ids": part} for part in tokens.split(4))
    return Evidence(compiled, accumulator.statistics, activations)


def measure(chosen: Plan, compiled: ecospa_fx.CompiledModel, tokens: torch.Tensor) -> float:
    """Perplexity of the model after the plan; the model itself stays as it is."""
    smaller = copy.deepcopy(compiled)
    smaller.apply(chosen)
    return perplexity(smaller, tokens)


def table(rows: list[Row], dense: float) -> str:
    """A line for each score and allocation, a column for each ratio."""
    ratios = sorted({r["ratio"] for r in rows})
    lines = [
        f"| score | allocation | {' | '.join(f'{r:.0%}' for r in ratios)} |",
        "|---|---|" + "---:|" * len(ratios),
    ]
    cells = {(r["score"], r["allocation"], r["ratio"]): r["perplexity"] for r in rows}
    for score, allocation in dict.fromkeys((r["score"], r["allocation"]) for r in rows):
        found = [cells.get((score, allocation, ratio)) for ratio in ratios]
        shown = [
            f"{v:.1f}" if v is not None and v < 1e4 else f"{v:.1e}" if v is not None else "" for v in found
        ]
        lines.append(f"| {score} | {allocation} | {' | '.join(shown)} |")
    return "\n".join([f"dense: {dense:.2f}", "", *lines])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of the Brown corpus (default: the narratives)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--scores", nargs="+", default=sorted(registered_scores()))
    parser.add_argument("--allocations", nargs="+", default=ALLOCATIONS, choices=ALLOCATIONS)
    parser.add_argument("--length", type=int, default=512, help="tokens of a document")
    parser.add_argument("--evaluation", type=int, default=8, help="documents to measure on")
    parser.add_argument(
        "--calibration", type=int, default=32, help="other documents, for gradients and activations"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    tokenizer, model = load_smollm2()
    measured, seen = split(tokenizer, options.corpus, options.evaluation, options.calibration, options.length)
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": measured[:2, :64]})
    dense = perplexity(compiled, measured)
    evidence = gather(compiled, seen)
    rows: list[Row] = []
    for cell in itertools.product(options.scores, options.allocations, options.ratios):
        rows.append(row(evidence, measured, *cell, options.seed))
        print(rows[-1], file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python -m benchmarks.quality", *sys.argv[1:]]), "machine": machine(),
        "seed": options.seed, "dense": dense, "rows": rows,
    }  # fmt: skip
    print(f"{result['command']}\n{result['machine']}, seed {options.seed}\n{table(rows, dense)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def row(
    evidence: Evidence, tokens: torch.Tensor, score: str, allocation: str, ratio: float, seed: int
) -> Row:
    """One cell of the table."""
    start = time.perf_counter()
    chosen = evidence.plan(score, allocation, ratio, seed)
    seconds = time.perf_counter() - start
    return {
        "score": score, "allocation": allocation, "ratio": ratio, "plan_s": round(seconds, 3),
        "params_before": chosen.params_before, "params_after": chosen.params_after,
        "coupled_before": chosen.coupled_before, "coupled_after": chosen.coupled_after,
        "perplexity": measure(chosen, evidence.compiled, tokens),
    }  # fmt: skip


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
