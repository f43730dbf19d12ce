"""Train a small GPT twice on the same tokens, dense and sparse in rounds, and print how the two differ."""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gpt.measure import alternating_medians, perplexity
from gpt.model import GPT
from gpt.run import Run, SparseRun
from gpt.text import Corpus, batches, load


@dataclass(frozen=True)
class Settings:
    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 8
    hidden: int = 768
    context: int = 128
    batch: int = 8
    steps: int = 480
    share_of_text: float = 1.0
    timed_steps: int = 20


QUICK = Settings(320, 32, 2, 2, 64, context=32, batch=4, steps=10, share_of_text=0.1, timed_steps=2)


def train(name: str, run: Run, corpus: Corpus, settings: Settings, seed: int, console: Console) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=settings.steps)
        tokens = batches(corpus.train, settings.batch, settings.context, settings.steps, seed)
        for step, (inputs, targets) in enumerate(tokens, start=1):
            run.step(inputs, targets)
            if line := run.after(step):
                console.print(line, highlight=False, soft_wrap=True)
            progress.advance(task)


def comparison(dense: Run, sparse: SparseRun, corpus: Corpus, settings: Settings) -> Table:
    """Measure both runs; the timed steps come last, because they go on training."""
    runs = dense, sparse
    table = Table("", "dense", "sparse", "sparse / dense")
    table.caption = "Training memory: parameters, gradients and moments."

    def row(name: str, form: str, values: Sequence[float]) -> None:
        table.add_row(name, *(form.format(value) for value in values), f"{values[1] / values[0]:.2f}")

    row("parameters", "{:,.0f}", [run.parameters for run in runs])
    row("coupled parameters", "{:,.0f}", sparse.coupled)
    row(
        "held-out perplexity",
        "{:.2f}",
        [perplexity(r.model, corpus.held_out, settings.context) for r in runs],
    )
    row("training memory, peak, MB", "{:.1f}", [run.peak for run in runs])
    row("training memory, end, MB", "{:.1f}", [run.megabytes for run in runs])
    inputs, targets = next(batches(corpus.train, settings.batch, settings.context, 1, seed=0))
    steps = [partial(run.step, inputs, targets) for run in runs]
    seconds = alternating_medians(steps, settings.timed_steps)
    row("median step, ms", "{:.1f}", [1000 * s for s in seconds])
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="the part of the coupled parameters that goes"
    )
    parser.add_argument("--rounds", type=int, default=4, help="the number of rounds in which it goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model for a few steps, to see that it runs"
    )
    options = parser.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    console = Console()

    corpus = load(settings.vocabulary, settings.share_of_text)
    console.print(
        f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out", highlight=False
    )
    torch.manual_seed(options.seed)
    sizes = settings.width, settings.layers, settings.heads, settings.hidden, settings.context
    model = GPT(corpus.vocabulary, *sizes)
    dense = Run(copy.deepcopy(model), settings.steps)
    sparse = SparseRun(model, settings.steps, options.ratio, options.rounds)
    for name, run in (("dense", dense), ("sparse", sparse)):
        train(name, run, corpus, settings, options.seed, console)
    console.print(comparison(dense, sparse, corpus, settings))


if __name__ == "__main__":
    main()
