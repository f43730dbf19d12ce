"""Perplexity of SmolLM2-135M by how it was pruned: ``python -m benchmarks.quality``.

All rows lose equally many parameters, in one shot; ``--steps`` trains each afterwards for a while.
Calibration, training and evaluation read different documents. See ``benchmarks/smollm2.py`` for what to
install.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ecospa_fx
from benchmarks.methods import METHODS, Batch, Evidence, gradients, method, needs_gradients
from benchmarks.smollm2 import load_smollm2, others, perplexity, shared_out, split
from ecospa_fx.activations import ActivationStatistics

Row = dict[str, Any]
DENSE = "dense"


def batches(tokens: torch.Tensor, size: int = 1) -> list[Batch]:
    return [{"input_ids": part} for part in tokens.split(size)]


def next_token(output: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy of a batch's own next tokens."""
    logits = output.logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def gather(compiled: ecospa_fx.CompiledModel, tokens: torch.Tensor, options: argparse.Namespace) -> Evidence:
    """Gradients of some documents, where they are needed, and one pass for activations."""
    felt = batches(few(tokens, options.gradients))
    activations = _activations(compiled, felt, options)
    needed = needs_gradients(options.methods)
    found = gradients(compiled, felt, next_token) if needed else (None, None)
    return Evidence(compiled, batches(tokens, 4), activations, *found)


def _activations(
    compiled: ecospa_fx.CompiledModel, felt: list[Batch], options: argparse.Namespace
) -> ActivationStatistics:
    """Those of an earlier try, or one pass forward and backward."""
    kept = options.json.with_suffix(".npz") if options.json else None
    if options.resume and kept and kept.exists():
        return ActivationStatistics(**np.load(kept))
    found = compiled.calibrate(felt, next_token)
    if kept:
        np.savez(kept, **vars(found))
    return found


def fine_tune(model: torch.nn.Module, tokens: torch.Tensor, steps: int, rate: float) -> None:
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


def rows(evidence: Evidence, texts: Texts, options: argparse.Namespace, known: list[Row]) -> Iterator[Row]:
    """One cell of the table after the other; with training, a second one for each. What is known stays."""
    done = {(row["ratio"], row["method"], row["steps"]) for row in known}
    for ratio, name in cells(options.ratios, options.methods):
        if all((ratio, name, n) in done for n in {0, options.steps}):
            continue
        start = time.perf_counter()
        kept = options.keep and options.keep / f"{name.replace(',', '').replace(' ', '-')}-{ratio}"
        model = evidence.smaller(method(name), ratio, options.seed, kept)
        row = {"method": name, "ratio": ratio, "params": sum(p.numel() for p in model.parameters())}
        for found in outcomes(model, texts, options):
            seconds = round(time.perf_counter() - start)
            if (ratio, name, found["steps"]) not in done:
                yield row | found | {"seconds": seconds}


def cells(ratios: list[float], methods: list[str]) -> list[tuple[float, str]]:
    """Every method at every ratio; with nothing gone they are all the dense model."""
    return [(ratio, name) for ratio in ratios for name in (methods if ratio else [DENSE])]


def outcomes(model: torch.nn.Module, texts: Texts, options: argparse.Namespace) -> Iterator[Row]:
    """Perplexities as the model is, and after training if there is any."""
    yield {"steps": 0, **perplexities(model, texts.measured)}
    if options.steps:
        fine_tune(model, texts.training, options.steps, options.rate)
        yield {"steps": options.steps, **perplexities(model, texts.measured)}


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


@dataclass(frozen=True, eq=False)
class Texts:
    """Token ids ``[documents, length]``.

    Attributes:
        measured: to measure on, by name; the corpus has none.
        training: of the corpus, others than for calibration.
        calibration: of the corpus.
    """

    measured: dict[str, torch.Tensor]
    training: torch.Tensor
    calibration: torch.Tensor

    @classmethod
    def read(cls, tokenizer: Any, options: argparse.Namespace) -> Texts:
        """As the options say."""
        other = options.calibration + options.training
        measured, seen = split(tokenizer, options.corpus, options.evaluation, other, options.length)
        more = others(tokenizer, options.others, options.evaluation, options.length)
        return cls({"": measured, **more}, *shared_out(seen, options.calibration))


def few(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Some of the documents, spread evenly."""
    return tokens[:: max(len(tokens) // count, 1)][:count]


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What all rows of the table have in common."""
    made = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    made.add_argument("--corpus", type=Path, help="folder of the Brown corpus (default: the narratives)")
    made.add_argument(
        "--others", type=Path, nargs="*", default=[], help="folders of other texts to measure on as well"
    )
    made.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3], help="0: the dense model")
    made.add_argument("--length", type=int, default=512, help="tokens of a document")
    made.add_argument("--evaluation", type=int, default=8, help="documents to measure on")
    made.add_argument("--calibration", type=int, default=64, help="other documents, for the repair")
    made.add_argument("--gradients", type=int, default=16, help="of these, for gradients and activations")
    made.add_argument("--training", type=int, default=0, help="others to train on (default: of calibration)")
    made.add_argument("--steps", type=int, default=0, help="of training afterwards, half a document each")
    made.add_argument("--rate", type=float, default=1e-4, help="of learning")
    made.add_argument("--autocast", action="store_true", help="products in bfloat16")
    made.add_argument("--json", type=Path, help="where to write the result")
    return made


def arguments() -> argparse.Namespace:
    made = parser("benchmarks.quality", __doc__)
    made.add_argument("--methods", nargs="+", default=list(METHODS), help=method.__doc__)
    made.add_argument("--balance", action="store_true", help="values of attention in a balanced basis")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--keep", type=Path, help="folder for the smaller models, which are then made once")
    made.add_argument("--resume", action="store_true", help="go on with what --json holds")
    return made.parse_args()


def finish(rows: Iterable[Row], name: str, file: Path | None) -> None:
    """Tell each row as it comes, print all of them as one result, and write it."""
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    command = " ".join([f"python -m {name}", *sys.argv[1:]])
    result = json.dumps({"command": command, "machine": machine(), "rows": found}, indent=1)
    print(result)
    if file:
        file.write_text(result + "\n", encoding="utf-8")


def precision(options: argparse.Namespace) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=options.autocast, cache_enabled=False)


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    tokenizer, model = load_smollm2()
    texts = Texts.read(tokenizer, options)
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": texts.measured[""][:2, :64]})
    if options.balance:
        print(compiled.balance(batches(few(texts.calibration, 16))), file=sys.stderr)
    known = _known(options)
    found: list[Row] = known["rows"] if known else []
    with precision(options):
        dense = known["dense"] if known else perplexity(compiled, texts.measured[""])
        _write(options, dense, found)
        for row in rows(gather(compiled, texts.calibration, options), texts, options, list(found)):
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
