"""A GPT from scratch, same tokens: dense, dense at the sparse size, sparse with moments kept or reset."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "examples"))

from gpt.measure import loss_of, perplexity
from gpt.model import GPT
from gpt.text import batches, load

VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT, BATCH = 1024, 128, 4, 4, 384, 64, 16
RUNS = ("dense", "dense, small", "sparse", "sparse, moments reset")


class Run:
    """One model in training.

    Args:
        name: one of ``RUNS``.
        options: of the command line.
        seed: of the first weights and of the batches.
    """

    def __init__(self, name: str, options: Namespace, seed: int) -> None:
        self.corpus = load(VOCABULARY)
        self.name, self.steps, self.seed = name, options.steps, seed
        torch.manual_seed(seed)
        model = GPT(self.corpus.vocabulary, WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT)
        self.model: CompiledModel = ecospa_fx.compile(model, args=(self.corpus.train[:CONTEXT][None],))
        if name == "dense, small":  # before training any choice is as good as another
            self.model.sparsify(ratio=options.ratio, score="random", allocation="uniform", seed=seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.after_step = self._schedule(options.ratio) if name.startswith("sparse") else lambda: None

    def _rate(self, step: int) -> float:
        return min((step + 1) / (0.05 * self.steps), 0.55 + 0.45 * float(np.cos(np.pi * step / self.steps)))

    def _schedule(self, ratio: float) -> Callable[[], None]:
        """Eight rounds between a tenth and a half of the steps."""
        start, end = self.steps // 10, self.steps // 2
        every = max(1, (end - start) // 8)
        schedule = SparsitySchedule(
            self.model, self.optimizer, target_ratio=ratio, every=every, start=start, end=end
        )

        def after() -> None:
            if schedule.step() and "reset" in self.name:
                self.optimizer.state.clear()

        return after

    def train(self, points: int = 10) -> dict[str, Any]:
        """Train to the end; held-out perplexity at evenly spread steps."""
        curve = []
        stream = batches(self.corpus.train, BATCH, CONTEXT, self.steps, self.seed)
        for step, (inputs, targets) in enumerate(stream, 1):
            self.optimizer.zero_grad()
            loss_of(self.model, inputs, targets).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.after_step()
            if step % (self.steps // points) == 0:
                curve.append([step, perplexity(self.model, self.corpus.held_out[:20_000], CONTEXT)])
        return {"parameters": sum(p.numel() for p in self.model.parameters()), "perplexity": curve}


def main(options: Namespace) -> dict[str, Any]:
    """Every run for every seed."""
    found = {
        name: [Run(name, options, seed).train() for seed in range(options.seeds)]
        for name in RUNS
        if not print(name, flush=True)
    }
    return {"steps": options.steps, "ratio": options.ratio, "batch": [BATCH, CONTEXT], "runs": found}
