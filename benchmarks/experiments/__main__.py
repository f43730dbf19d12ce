"""Run one experiment and write its result, or the page about all of them."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

from benchmarks.experiments import record
from benchmarks.experiments.vision import FOLDER

NAMES = ("figure", "sweep", "language", "encoder")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "page"])
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the data set")
    parser.add_argument("--out", type=Path, default=record.FOLDER)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=9_600)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument(
        "--ratio", type=float, default=0.7, help="fraction of the coupled parameters that goes"
    )
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.experiments.{options.name}")
    if options.name == "page":
        module.main(options.out)
        return
    started = time.perf_counter()
    result = module.main(options)
    print(record.save(options.name, result, time.perf_counter() - started, options.out))


if __name__ == "__main__":
    main()
