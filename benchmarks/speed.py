"""Speed of the compiler and of what it makes: ``python -m benchmarks.speed [names]``.

Every figure that compares two things is a median of ratios measured in turn, in one process.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ecospa_fx
from ecospa_fx.testing import random_removal

Row = dict[str, Any]


def llama(
    layers: int, width: int, hidden: int, heads: int, kv_heads: int, vocabulary: int, device: str
) -> nn.Module:
    """A LLaMA of these shapes, with random weights or (on ``meta``) none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, use_cache=False,
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config)


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def analyse(layers: int = 32) -> Row:
    """Capture and coupling of a 6.7B LLaMA without its weights."""
    model = llama(layers, 4096, 11008, 32, 32, 32000, "meta")
    tokens = torch.zeros(2, 16, dtype=torch.long, device="meta")
    start, start_cpu = time.perf_counter(), time.process_time()
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": tokens})
    captured, captured_cpu = time.perf_counter(), time.process_time()
    graph = compiled.couplings
    done, done_cpu = time.perf_counter(), time.process_time()
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "layers": layers, "couples": len(graph),
        "capture_s": captured - start, "capture_cpu_s": captured_cpu - start_cpu,
        "analysis_s": done - captured, "analysis_cpu_s": done_cpu - captured_cpu, "peak_gib": peak(),
    }  # fmt: skip


def sparsify() -> Row:
    """One round on a LLaMA of 135M parameters with AdamW, beyond the gradients."""
    model = llama(30, 576, 1536, 9, 3, 49152, "cpu")
    tokens = torch.randint(0, 49152, (1, 64))
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": tokens}, check=False)
    optimizer = torch.optim.AdamW(compiled.parameters())
    compiled(tokens).logits.float().logsumexp(-1).mean().backward()
    optimizer.step()
    _ = compiled.couplings  # the analysis is made once, not in every round
    report = compiled.sparsify(None, 0.2, optimizer=optimizer)
    return {
        "params_before": report.params_before,
        "params_after": report.params_after,
        "sparsify_s": report.seconds,
    }


def overhead(pairs: int = 7) -> Row:
    """Forward and backward of the untouched compiled model against the eager one."""
    model = llama(4, 512, 1376, 8, 8, 8192, "cpu")
    tokens = torch.randint(0, 8192, (2, 256))
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": tokens})
    ratio = paired(lambda: step(compiled, tokens), lambda: step(model, tokens), pairs)
    return {"compiled_over_eager": ratio[0], "low": ratio[1], "high": ratio[2]}


def speedup(pairs: int = 5) -> Row:
    """Half of the coupled parameters of a LLaMA block gone: forward alone, and with backward."""
    dense = llama(2, 1024, 2816, 16, 16, 1024, "cpu")
    tokens = torch.randint(0, 1024, (1, 512))
    compiled = ecospa_fx.compile(copy.deepcopy(dense), kwargs={"input_ids": tokens}, check=False)
    before = flops(dense, tokens)
    compiled.apply(random_removal(compiled, 0.5, seed=0))
    predicted = before / flops(compiled, tokens)
    row: Row = {"flop_speedup": predicted}
    for name, run in (("forward", forward), ("training", step)):
        measured, low, high = paired(
            lambda run=run: run(dense, tokens), lambda run=run: run(compiled, tokens), pairs
        )  # type: ignore[misc]
        row |= {
            f"{name}_speedup": measured,
            f"{name}_share": measured / predicted,
            f"{name}_low": low,
            f"{name}_high": high,
        }
    return row


def forward(model: nn.Module, tokens: torch.Tensor) -> None:
    """One pass without gradients."""
    with torch.no_grad():
        model(input_ids=tokens)


def step(model: nn.Module, tokens: torch.Tensor) -> None:
    """Forward and backward."""
    model(input_ids=tokens).logits.float().logsumexp(-1).mean().backward()
    model.zero_grad(set_to_none=True)


def flops(model: nn.Module, tokens: torch.Tensor) -> int:
    """Floating-point operations of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward(model, tokens)
    return counter.get_total_flops()


def paired(a: Callable[[], None], b: Callable[[], None], pairs: int) -> tuple[float, float, float]:
    """Median, least and largest ratio of the times of ``a`` and ``b``, run in turn."""
    for run in (a, b):
        run()
    ratios = []
    for _ in range(pairs):
        times = []
        for run in (a, b):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios), min(ratios), max(ratios)


BENCHMARKS: dict[str, Callable[[], Row]] = {
    "analyse": analyse, "sparsify": sparsify, "overhead": overhead, "speedup": speedup,
}  # fmt: skip


def main() -> None:
    """Run the named benchmarks (all by default) and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which to run")
    parser.add_argument("--json", type=Path, help="append the results to this file")
    options = parser.parse_args()
    for name in options.names or BENCHMARKS:
        result = {
            "benchmark": name,
            **BENCHMARKS[name](),
            "command": " ".join(["python -m benchmarks.speed", name]),
            **machine(),
        }
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()})
        print(line, flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(line + "\n")


def machine() -> Row:
    """What the figures were taken on."""
    return {
        "torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine(),
        "threads": torch.get_num_threads(), "platform": sys.platform,
    }  # fmt: skip


if __name__ == "__main__":
    main()
