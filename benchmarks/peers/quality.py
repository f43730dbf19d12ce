"""Torch-Pruning's rows for the table of perplexities: ``python -m benchmarks.peers.quality --corpus FOLDER``.

Hidden units of feed-forward parts go, as many as make up the same number of parameters; heads stay, since a
fifth of three groups is none. Scores are the library's own, from gradients of other documents. Needs
``torch-pruning==1.6.1``; see ``benchmarks/quality.py`` for documents and evaluation.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.quality import batches, machine, next_token
from benchmarks.smollm2 import load_smollm2, perplexity, split

Row = dict[str, Any]


def gradients(model: nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sum over documents, as the library's Taylor score takes it."""
    for batch in batches(tokens):
        next_token(model(**batch), batch).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def pruned(model: nn.Module, found: dict[str, torch.Tensor], score: str, everywhere: bool, ratio: float
           ) -> nn.Module:  # fmt: skip
    """A copy without the fraction ``ratio`` of its hidden units."""
    import torch_pruning as tp

    smaller = copy.deepcopy(model)
    for name, parameter in smaller.named_parameters():
        parameter.grad = found.get(name)
    scores = {"Taylor": tp.importance.GroupTaylorImportance, "norm": tp.importance.GroupMagnitudeImportance}
    tp.pruner.BasePruner(
        smaller, example_inputs=torch.zeros(1, 8, dtype=torch.long), importance=scores[score](),
        global_pruning=everywhere, pruning_ratio=ratio, ignored_layers=_kept(smaller),
        output_transform=lambda output: output.logits,
    ).step()  # fmt: skip
    smaller.zero_grad()
    return smaller


def _kept(model: nn.Module) -> list[nn.Module]:
    """Layers whose outputs stay: all but those that make hidden units."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    return [m for n, m in layers if not n.endswith(("gate_proj", "up_proj"))]


def hidden_ratio(model: nn.Module, ratio: float) -> float:
    """The fraction of hidden units that holds ``ratio`` of what all couples hold."""
    held = {n: p.numel() for n, p in model.named_parameters() if "_proj" in n}
    return ratio * sum(held.values()) / sum(size for name, size in held.items() if ".mlp." in name)


def rows(model: nn.Module, measured: torch.Tensor, seen: torch.Tensor, ratios: list[float]) -> list[Row]:
    """One for each score, ranking and ratio; a failure is recorded with its message."""
    grads, result = gradients(model, seen), []
    for ratio in ratios:
        for score, everywhere in (("Taylor", False), ("Taylor", True), ("norm", False)):
            row: Row = {"score": score, "global": everywhere, "ratio": ratio}
            try:
                smaller = pruned(model, grads, score, everywhere, hidden_ratio(model, ratio))
                row |= {"params": sum(p.numel() for p in smaller.parameters())}
                row |= {"perplexity": perplexity(smaller, measured)}
            except Exception as error:
                row |= {"error": f"{type(error).__name__}: {error}"}
            print(row, file=sys.stderr, flush=True)
            result.append(row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.quality", description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of the Brown corpus (default: the narratives)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--documents", type=int, default=12, help="for gradients")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    tokenizer, model = load_smollm2()
    measured, seen = split(tokenizer, options.corpus, 8, options.documents, 512)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = rows(model, measured, seen, options.ratios)
    command = " ".join(["python -m benchmarks.peers.quality", *sys.argv[1:]])
    result = json.dumps({"command": command, "machine": machine(), "rows": found}, indent=1)
    print(result)
    if options.json:
        options.json.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
