"""Compile time against depth: ``python -m benchmarks.depth [--layers 2 4 8 16 32 64]``.

LLaMAs of one width and growing depth, on the meta device: CPU seconds of capture and analysis, for the whole
and for each node. Flat columns at the right mean that the cost is linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import ecospa_fx
from benchmarks.speed import llama
from ecospa_fx import CompiledModel
from ecospa_fx.passes.rewrite import rewrite
from ecospa_fx.testing import random_removal

Row = dict[str, Any]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and its CPU seconds."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(layers: int, width: int, hidden: int, heads: int) -> Row:
    """One depth."""
    model = llama(layers, width, hidden, heads, max(heads // 4, 1), 32000, "meta")
    tokens = torch.zeros(2, 16, dtype=torch.long, device="meta")
    compiled, capture = timed(lambda: ecospa_fx.compile(model, kwargs={"input_ids": tokens}))
    _, analysis = timed(lambda: compiled.couplings)
    _, writing = timed(lambda: _rewritten(compiled))
    nodes = len(compiled.analysis.program.graph.nodes)
    return {
        "layers": layers, "nodes": nodes, "couples": len(compiled.couplings), "capture_s": capture,
        "analysis_s": analysis, "rewrite_s": writing, "capture_us_per_node": capture / nodes * 1e6,
        "analysis_us_per_node": analysis / nodes * 1e6, "rewrite_us_per_node": writing / nodes * 1e6,
    }  # fmt: skip


def _rewritten(compiled: CompiledModel) -> object:
    """The graph for half of the units, without cutting anything."""
    from ecospa_fx.passes.follow import dead_labels

    analysis = compiled.analysis
    return rewrite(analysis, dead_labels(analysis, random_removal(compiled, 0.5)))


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " ---: |" * len(names)]
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every depth, once before to warm up, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = options.width, options.hidden, options.heads
    measure(1, *shape)
    rows = [measure(layers, *shape) for layers in options.layers]
    machine = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(table(rows), machine, sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
