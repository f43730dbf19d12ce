"""One library and one model, in a process of its own: ``python -m benchmarks.peers.case LIBRARY MODEL``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.models import SHAPES, build, logits, tokens

Row = dict[str, Any]


def measure(library: str, name: str, layers: int | None = None, device: str = "cpu") -> Row:
    """Time and memory from model to pruned model, and whether what comes out runs.

    What a library imports when it is first called counts; its own import stands beside that.
    """
    shape = SHAPES[name] if layers is None else replace(SHAPES[name], layers=layers)
    model, batch = build(shape, device), tokens(shape, device)
    before, held = numbers(model), fresh_peak()
    row: Row = {"library": library, "model": name, "layers": shape.layers, "parameters": before}
    row |= {"device": device, "model_gib": weight(model), "import_cpu_seconds": imported(library)}
    started, started_cpu = time.perf_counter(), time.process_time()
    try:
        smaller = LIBRARIES[library][1](model, batch, shape)
        row |= {"pruned": numbers(smaller) < before, "parameters_after": numbers(smaller)}
    except Exception as error:
        return row | {"pruned": False, "error": message(error), "seconds": time.perf_counter() - started}
    row["seconds"], row["cpu_seconds"] = time.perf_counter() - started, time.process_time() - started_cpu
    row["peak_above_gib"] = peak() - held
    return row | runs(smaller, batch)


def runs(model: nn.Module, batch: torch.Tensor) -> Row:
    """Whether the pruned model answers."""
    try:
        with torch.no_grad():
            return {"runs": logits(model(batch)).shape[:2] == batch.shape}
    except Exception as error:
        return {"runs": False, "error": message(error)}


def imported(library: str) -> float:
    """CPU seconds of importing it."""
    started = time.process_time()
    importlib.import_module(library.partition(",")[0].replace("-", "_"))
    return time.process_time() - started


def message(error: Exception) -> str:
    """The kind and the first line, cut where it gets long."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def numbers(model: nn.Module) -> int:
    """How many numbers the parameters hold."""
    return sum(p.numel() for p in model.parameters())


def weight(model: nn.Module) -> float:
    """GiB of its parameters; none on ``meta``."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta) / 2**30


def fresh_peak() -> float:
    """Resident memory now, in GiB; where the system allows it the peak starts anew from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return peak()


def peak() -> float:
    """The largest resident memory since :func:`fresh_peak`, in GiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "meta"])
    options = parser.parse_args(arguments)
    import transformers  # noqa: F401  the same for all, and slow

    row = measure(options.library, options.model, options.layers, options.device)
    load = round(os.getloadavg()[0], 1)
    found = row | {"torch": torch.__version__, "threads": torch.get_num_threads(), "load": load}
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
