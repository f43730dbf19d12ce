"""Ways to make couples smaller, as in the paper: the same number of parameters in each couple and epoch."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import ecospa_fx
from benchmarks.experiments.masked import Masked
from benchmarks.experiments.vision import Images, Training, deit, images
from ecospa_fx import CompiledModel

LIBRARY = {
    "coupled (Eq. 9)": "l1_product",
    "coupled, Fisher": "fisher",
    "random": "random",
    "magnitude": "magnitude",
}
MASKED = ("individual", "tSVD")
METHODS = ("dense", *LIBRARY, *MASKED)


def training(options: Namespace, seed: int) -> Training:
    train = images(options.data, "train", options.images)
    return Training(train, images(options.data, "t10k", options.test_images), options.epochs, seed)


def shares(epochs: int, ratio: float) -> list[float]:
    """The part of the dense couples that is gone after each epoch: linear, from the second on."""
    first, last = 2, max(3, epochs - 2)
    return [ratio * min(max(e - first + 1, 0) / (last - first + 1), 1.0) for e in range(1, epochs + 1)]


def run(method: str, options: Namespace, seed: int) -> list[float]:
    """Accuracy after each epoch of one method."""
    plan = training(options, seed)
    example: Images = plan.test
    compiled = ecospa_fx.compile(deit(seed), kwargs={"pixel_values": example.pixels[:4]}).train()
    optimizer = plan.optimizer(compiled)
    gone = shares(options.epochs, options.ratio)
    if method == "dense":
        return plan.run(compiled, optimizer)
    if method in LIBRARY:
        return _library(LIBRARY[method], compiled, optimizer, plan, gone)
    return _masks(method, compiled, optimizer, plan, gone)


def _library(
    score: str, compiled: CompiledModel, optimizer: Any, plan: Training, gone: list[float]
) -> list[float]:
    fisher = ecospa_fx.FisherAccumulator(compiled)
    needs = score == "fisher"

    def remove(epoch: int) -> None:
        before = gone[epoch - 2] if epoch > 1 else 0.0
        ratio = 1 - (1 - gone[epoch - 1]) / (1 - before)
        if ratio > 0:
            how: dict[str, Any] = {"score": score, "allocation": "uniform", "seed": plan.seed + epoch}
            compiled.sparsify(fisher if needs else None, ratio=ratio, optimizer=optimizer, **how)

    return plan.run(compiled, optimizer, fisher.update if needs else lambda: None, remove)


def _masks(
    method: str, compiled: CompiledModel, optimizer: Any, plan: Training, gone: list[float]
) -> list[float]:
    masked = Masked(compiled, optimizer)
    couples = [c for c in compiled.couplings.couples if c.kind in ("qk", "vo", "ffn")]

    def remove(epoch: int) -> None:
        if gone[epoch - 1]:
            losses = compiled.plan(ratio=gone[epoch - 1], score="random", allocation="uniform").losses
            left = {loss.couple: loss.after for loss in losses}
            for couple in couples:
                way = masked.individually if method == "individual" else masked.truncated
                if method == "tSVD" and couple.kind == "ffn":  # an activation stands within the product
                    way = masked.aligned
                way(couple, left[couple.name])

    optimizer.register_step_post_hook(lambda *_: masked.apply())
    return plan.run(compiled, optimizer, each_epoch=remove)


def main(options: Namespace) -> dict[str, Any]:
    """Every method for every seed."""
    found = {
        method: [run(method, options, seed) for seed in range(options.seeds)]
        for method in METHODS
        if not print(method, flush=True)
    }
    return {
        "images": options.images, "epochs": options.epochs, "ratio": options.ratio,
        "gone": shares(options.epochs, options.ratio), "accuracy": found,
    }  # fmt: skip
