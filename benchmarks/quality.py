"""Perplexity of SmolLM2-135M by how it was pruned: ``python -m benchmarks.quality``.

All rows lose equally many parameters, in one shot; ``--steps`` trains each afterwards for a while.
Calibration, training and evaluation read different documents. See ``benchmarks/smollm2.py`` for what to
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
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ecospa_fx
from benchmarks.smollm2 import load_smollm2, others, perplexity, shared_out, split
from ecospa_fx.activations import ActivationStatistics
from ecospa_fx.fisher import GradientStatistics
from ecospa_fx.passes.plan import plan
from ecospa_fx.passes.score import score as score_units
from ecospa_fx.plan import Plan, PlanSettings
from ecospa_fx.scores import ScoreContext

Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """How units are ranked, how the target is shared out, and how weights make up for what went."""

    score: str
    allocation: str
    repair: Mapping[str, Any] | None = None


METHODS = {
    "random": Method("random", "uniform"),
    "magnitude": Method("magnitude", "uniform"),
    "Eq. 9 alone": Method("l1_product", "uniform"),
    "Fisher + Eq. 9 (the paper)": Method("l1_product", "ecospa"),
    "activation": Method("activation", "ecospa"),
    "Taylor": Method("taylor", "ecospa"),
    "Fisher": Method("fisher", "ecospa"),
    "gate": Method("gate", "global"),
    "gate, repaired": Method("gate", "global", repair={}),
    "gate, all sums repaired": Method("gate", "global", repair={"target": "sum", "every": True}),
}


def method(name: str) -> Method:
    """One of the rows above, or a score and an allocation, ``"taylor/uniform"``."""
    return METHODS[name] if name in METHODS else Method(*name.split("/"))


@dataclass(frozen=True, eq=False)
class Evidence:
    """A model, and what calibration data say about it."""

    compiled: ecospa_fx.CompiledModel
    tokens: torch.Tensor
    gradients: GradientStatistics | None
    activations: ActivationStatistics

    def plan(self, how: Method, ratio: float, seed: int) -> Plan:
        graph, removal = self.compiled.couplings, self.compiled.removal
        parameters, generator = dict(self.compiled.named_parameters()), np.random.default_rng(seed)
        context = ScoreContext(
            graph, removal, parameters, self.gradients, self.activations, generator=generator
        )
        scores, partition = score_units(how.score, context), self.compiled.analysis.partition
        settings = PlanSettings(how.allocation)
        importance = self.gradients.importance if self.gradients else None
        return plan(graph, partition, removal, scores, importance,
                    ratio=ratio, settings=settings, score=how.score)  # fmt: skip

    def smaller(self, how: Method, ratio: float, seed: int, kept: Path | None) -> ecospa_fx.CompiledModel:
        """A copy that has lost its share, out of the folder ``kept`` if there is one; the model stays."""
        if kept and kept.exists():
            return ecospa_fx.load(kept, copy.deepcopy(self.compiled.source), check=False)
        chosen = self.plan(how, ratio, seed)
        repair = None
        if how.repair is not None:
            repair = self.compiled.repair(chosen, batches(self.tokens, 4), **how.repair)
        result = copy.deepcopy(self.compiled)
        result.apply(chosen, repair=repair)
        if kept:
            result.save(kept)
        return result


def batches(tokens: torch.Tensor, size: int = 1) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": part} for part in tokens.split(size)]


def next_token(output: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of a batch's own next tokens."""
    logits = output.logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def gather(compiled: ecospa_fx.CompiledModel, tokens: torch.Tensor, options: argparse.Namespace) -> Evidence:
    """One sample of Eq. 6 for each of some documents, where that is needed, and one pass for activations."""
    felt = batches(tokens[:: max(len(tokens) // options.gradients, 1)][: options.gradients])
    chosen = [method(name) for name in options.methods]
    needed = any(m.allocation == "ecospa" or m.score in ("fisher", "taylor") for m in chosen)
    gradients = _gradients(compiled, felt) if needed else None
    return Evidence(compiled, tokens, gradients, _activations(compiled, felt, options))


def _activations(
    compiled: ecospa_fx.CompiledModel, felt: list[dict[str, torch.Tensor]], options: argparse.Namespace
) -> ActivationStatistics:
    """Those of an earlier try, or one pass forward and backward."""
    kept = options.json.with_suffix(".npz") if options.json else None
    if options.resume and kept and kept.exists():
        return ActivationStatistics(**np.load(kept))
    found = compiled.calibrate(felt, next_token)
    if kept:
        np.savez(kept, **vars(found))
    return found


def _gradients(compiled: ecospa_fx.CompiledModel, felt: list[dict[str, torch.Tensor]]) -> GradientStatistics:
    accumulator = ecospa_fx.FisherAccumulator(compiled)
    for batch in felt:
        compiled.zero_grad()
        next_token(compiled(**batch), batch).backward()
        accumulator.update()
    compiled.zero_grad()
    return accumulator.statistics


def fine_tune(model: ecospa_fx.CompiledModel, tokens: torch.Tensor, steps: int, rate: float) -> None:
    """AdamW on half a document a step, with a warm-up of a tenth and a cosine down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    found = batches(torch.cat(tokens.chunk(2, 1)))
    for batch in itertools.islice(itertools.cycle(found), steps):
        optimizer.zero_grad()
        next_token(model(**batch), batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


def perplexities(model: Any, texts: Mapping[str, torch.Tensor]) -> Row:
    """Of the first text, and of the others by name."""
    first, *others = texts
    found: Row = {"perplexity": perplexity(model, texts[first])}
    return found | ({"others": {n: perplexity(model, texts[n]) for n in others}} if others else {})


def rows(evidence: Evidence, texts: Mapping[str, torch.Tensor], training: torch.Tensor,
         options: argparse.Namespace, known: list[Row]) -> Iterator[Row]:  # fmt: skip
    """One cell of the table after the other; with training, a second one for each. What is known stays."""
    done = {(row["ratio"], row["method"], row["steps"]) for row in known}
    if options.others and (0.0, "dense", 0) not in done:
        params = sum(p.numel() for p in evidence.compiled.parameters())
        yield {"method": "dense", "ratio": 0.0, "params": params, "steps": 0,
               **perplexities(evidence.compiled, texts)}  # fmt: skip
    for ratio, name in itertools.product(options.ratios, options.methods):
        if all((ratio, name, n) in done for n in {0, options.steps}):
            continue
        start = time.perf_counter()
        kept = options.keep and options.keep / f"{name.replace(',', '').replace(' ', '-')}-{ratio}"
        model = evidence.smaller(method(name), ratio, options.seed, kept)
        row = {
            "method": name,
            "ratio": ratio,
            "params": sum(p.numel() for p in model.parameters()),
            "steps": 0,
        }
        if (ratio, name, 0) not in done:
            yield row | {**perplexities(model, texts),
                         "seconds": round(time.perf_counter() - start)}  # fmt: skip
        if options.steps:
            fine_tune(model, training, options.steps, options.rate)
            yield row | {**perplexities(model, texts), "steps": options.steps,
                         "seconds": round(time.perf_counter() - start)}  # fmt: skip


def table(found: list[Row], dense: float) -> str:
    """A line for each method, a column for each ratio."""
    columns = sorted({(r["ratio"], r["steps"]) for r in found}, key=lambda c: (c[1], c[0]))
    heads = [f"{ratio:.0%}" + (f", {steps} steps" if steps else "") for ratio, steps in columns]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
    cells = {(r["method"], r["ratio"], r["steps"]): r["perplexity"] for r in found}
    for name in dict.fromkeys(r["method"] for r in found):
        shown = [_cell(cells.get((name, *column)), dense) for column in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([f"dense: {dense:.2f}", "", *lines])


def _cell(value: float | None, dense: float) -> str:
    if value is None:
        return ""
    return f"{value:.1f} ({value / dense:.2f}×)" if value < 1e4 else f"{value:.1e}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of the Brown corpus (default: the narratives)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=method.__doc__)
    parser.add_argument(
        "--others", type=Path, nargs="*", default=[], help="folders of other texts to measure on as well"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens of a document")
    parser.add_argument("--evaluation", type=int, default=8, help="documents to measure on")
    parser.add_argument("--calibration", type=int, default=64, help="other documents, for the repair")
    parser.add_argument("--gradients", type=int, default=16, help="of these, for gradients and activations")
    parser.add_argument(
        "--training", type=int, default=0, help="others to train on (default: of calibration)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="of training after the removal, half a document each"
    )
    parser.add_argument("--rate", type=float, default=1e-4, help="of learning")
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument("--balance", action="store_true", help="values of attention in a balanced basis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--keep", type=Path, help="folder for the smaller models, which are then made once")
    parser.add_argument("--resume", action="store_true", help="go on with what --json holds")
    return parser.parse_args()


def precision(options: argparse.Namespace) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=options.autocast, cache_enabled=False)


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    tokenizer, model = load_smollm2()
    other = options.calibration + options.training
    measured, seen = split(tokenizer, options.corpus, options.evaluation, other, options.length)
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": measured[:2, :64]})
    training, calibration = shared_out(seen, options.calibration)
    if options.balance:
        print(compiled.balance(batches(calibration[:: max(len(calibration) // 16, 1)])), file=sys.stderr)
    texts = {"": measured} | (
        others(tokenizer, options.others, options.evaluation, options.length) if options.others else {}
    )
    known = _known(options)
    found: list[Row] = known["rows"] if known else []
    with precision(options):
        dense = known["dense"] if known else perplexity(compiled, measured)
        _write(options, dense, found)
        for row in rows(gather(compiled, calibration, options), texts, training, options, list(found)):
            found.append(row)
            print(row, file=sys.stderr, flush=True)
            _write(options, dense, found)
    print(f"{_command()}\n{machine()}, seed {options.seed}\n{table(found, dense)}")


def _known(options: argparse.Namespace) -> Row | None:
    """The result of an earlier try."""
    if not options.resume or not options.json or not options.json.exists():
        return None
    return dict(json.loads(options.json.read_text(encoding="utf-8")))


def _write(options: argparse.Namespace, dense: float, found: list[Row]) -> None:
    if options.json:
        result = {"command": _command(), "machine": machine(), "seed": options.seed,
                  "dense": dense, "rows": found}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _command() -> str:
    return " ".join(["python -m benchmarks.quality", *sys.argv[1:]])


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
