"""K and the threshold of Algorithm 1: the DeiT of ``figure`` with the same target and other settings."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import ecospa_fx
from benchmarks.experiments.figure import training
from benchmarks.experiments.vision import deit
from ecospa_fx import SparsitySchedule

K = (0.1, 0.3, 0.6)
THRESHOLDS = (0.5, 0.9, 0.98)


def run(top_k: float, threshold: float, options: Namespace, seed: int) -> list[float]:
    """Accuracy after each epoch: one round an epoch, from the second to the last but two."""
    plan = training(options, seed)
    compiled = ecospa_fx.compile(deit(seed), kwargs={"pixel_values": plan.test.pixels[:4]}).train()
    optimizer = plan.optimizer(compiled)
    epoch = plan.steps_an_epoch
    schedule = SparsitySchedule(
        compiled, optimizer, target_ratio=options.ratio, every=epoch, start=epoch,
        end=max(3, options.epochs - 2) * epoch, ramp="linear", score="l1_product",
        top_k=top_k, threshold=threshold,
    )  # fmt: skip
    return plan.run(compiled, optimizer, after_step=schedule.step)


def main(options: Namespace) -> dict[str, Any]:
    """Every pair for every seed."""
    found = [
        {"top_k": k, "threshold": t, "accuracy": [run(k, t, options, seed) for seed in range(options.seeds)]}
        for k in K
        for t in THRESHOLDS
        if not print(k, t, flush=True)
    ]
    return {"images": options.images, "epochs": options.epochs, "ratio": options.ratio, "runs": found}
