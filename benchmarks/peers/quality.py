"""Torch-Pruning's rows for the table of perplexities: ``python -m benchmarks.peers.quality --corpus FOLDER``.

Hidden units of feed-forward parts go, as many as make up the same number of parameters; heads stay, since a
fifth of three groups is none. Scores are the library's own, from gradients of other documents. Needs
``torch-pruning==1.6.1``; see ``benchmarks/quality.py`` for documents and evaluation.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.methods import Batch, Loss
from benchmarks.quality import Texts, batches, few, finish, next_token, outcomes, parser, precision
from benchmarks.smollm2 import load_smollm2

Row = dict[str, Any]
RANKINGS = {"Taylor": ("Taylor", False), "Taylor, global": ("Taylor", True), "norm": ("norm", False)}
"""Scores of the library, and whether all layers are ranked together."""


def gradients(model: nn.Module, felt: list[Batch], loss: Loss) -> dict[str, torch.Tensor]:
    """The sum over batches, as the library's Taylor score takes it."""
    for batch in felt:
        loss(model(**batch), batch).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def pruned(
    model: nn.Module,
    found: dict[str, torch.Tensor],
    ranking: tuple[str, bool],
    ratio: float,
    hidden: tuple[str, ...],
    **example: Any,
) -> nn.Module:
    """A copy without the fraction ``ratio`` of the hidden units, which layers named ``hidden`` make."""
    import torch_pruning as tp

    smaller = copy.deepcopy(model)
    for name, parameter in smaller.named_parameters():
        parameter.grad = found.get(name)
    scores = {"Taylor": tp.importance.GroupTaylorImportance, "norm": tp.importance.GroupMagnitudeImportance}
    layers = [(n, m) for n, m in smaller.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    kept = [m for n, m in layers if not n.endswith(hidden)]
    score, everywhere = ranking
    tp.pruner.BasePruner(
        smaller, importance=scores[score](), global_pruning=everywhere, pruning_ratio=ratio,
        ignored_layers=kept, **example,
    ).step()  # fmt: skip
    smaller.zero_grad()
    return smaller


def hidden_ratio(model: nn.Module, ratio: float, coupled: str, hidden: str) -> float:
    """The fraction of hidden units that holds ``ratio`` of what all couples hold.

    Args:
        model: the model.
        ratio: of the coupled parameters.
        coupled: a pattern in the names of all that couples hold.
        hidden: a pattern in the names of those that hidden units hold, among them.
    """
    held = {n: p.numel() for n, p in model.named_parameters() if re.search(coupled, n)}
    return ratio * sum(held.values()) / sum(size for name, size in held.items() if re.search(hidden, name))


def tried(
    ratios: Iterable[float],
    rankings: Iterable[str],
    shrink: Callable[[tuple[str, bool], float], nn.Module],
    measure: Callable[[nn.Module], Iterable[Row]],
) -> Iterator[Row]:
    """Rows of each ratio and ranking; a failure is a row too."""
    for ratio, name in itertools.product(ratios, rankings):
        row: Row = {"method": f"Torch-Pruning, {name}", "ratio": ratio}
        try:
            smaller = shrink(RANKINGS[name], ratio)
            row |= {"params": sum(p.numel() for p in smaller.parameters())}
            yield from (row | found for found in measure(smaller))
        except Exception as error:
            yield row | {"error": f"{type(error).__name__}: {error}"}


def rows(model: nn.Module, texts: Texts, options: argparse.Namespace) -> Iterator[Row]:
    """As the options say."""
    grads = gradients(model, batches(few(texts.calibration, options.gradients)), next_token)
    example = {"example_inputs": torch.zeros(1, 8, dtype=torch.long), "output_transform": lambda o: o.logits}

    def shrink(ranking: tuple[str, bool], ratio: float) -> nn.Module:
        share = hidden_ratio(model, ratio, "_proj", r"\.mlp\.")
        return pruned(model, grads, ranking, share, ("gate_proj", "up_proj"), **example)

    return tried(options.ratios, options.rankings, shrink, lambda smaller: outcomes(smaller, texts, options))


def arguments() -> argparse.Namespace:
    made = parser("benchmarks.peers.quality", __doc__)
    made.add_argument("--rankings", nargs="+", choices=RANKINGS, default=list(RANKINGS))
    return made.parse_args()


def main() -> None:
    options = arguments()
    tokenizer, model = load_smollm2()
    with precision(options):
        found = rows(model, Texts.read(tokenizer, options), options)
        finish(found, "benchmarks.peers.quality", options.json)


if __name__ == "__main__":
    main()
