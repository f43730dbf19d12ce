"""What a round holds and sends for large models: ``python -m benchmarks.scale 7b 70b``.

The model and AdamW's moments stand on the meta device, which has shapes and no memory; every storage that a
round makes there is counted while it lives. What the meta device cannot run, reading gradients, is counted on
the CPU for one layer of the same widths.
"""

from __future__ import annotations

import argparse
import json
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.fisher import FisherSums

Row = dict[str, Any]
CONFIGS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 256,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
}  # fmt: skip


class Live(TorchDispatchMode):
    """Counts bytes of tensors made under it while they live, on one kind of device.

    Args:
        device: ``"meta"`` stands for the accelerator, ``"cpu"`` is the host.
        held: what lives already.

    Attributes:
        now: bytes alive at present, those of ``held`` included.
        peak: the most there were.
    """

    def __init__(self, device: str, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._seen: set[int] = set()
        for tensor in held:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != self.device or storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result


def llama(config: dict[str, int], layers: int | None = None, device: str = "meta") -> CompiledModel:
    """A LLaMA in bfloat16; parameters of random numbers where the device has memory."""
    chosen = {**config, "num_hidden_layers": layers or config["num_hidden_layers"]}
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**chosen)).to(torch.bfloat16)
        tokens = torch.zeros(1, 8, dtype=torch.long)
    model.config.use_cache = False
    return ecospa_fx.compile(model, kwargs={"input_ids": tokens}, check=False)


def training(model: nn.Module) -> torch.optim.AdamW:
    """AdamW with moments and gradients in place, as between two steps."""
    optimizer = torch.optim.AdamW(model.parameters())
    for param in model.parameters():
        param.grad = torch.empty_like(param)
        optimizer.state[param] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.empty_like(param),
            "exp_avg_sq": torch.empty_like(param),
        }
    return optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Parameters, gradients and moments."""
    for param in model.parameters():
        yield param.detach()
        if param.grad is not None:
            yield param.grad
        yield from (v for v in optimizer.state[param].values() if isinstance(v, torch.Tensor))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return round(time.perf_counter() - started, 1), result


def removal(model: CompiledModel) -> Row:
    """Bytes during and after a round that takes half of what couples hold."""
    largest_cut = max(model.get_parameter(w.parameter).numel() for c in couples(model) for w in c.weights)
    seconds, plan = timed(lambda: model.plan(ratio=0.5, score="random", allocation="uniform"))
    optimizer = training(model)
    live, host = Live("meta", tensors(model, optimizer)), Live("cpu")
    before = live.now
    with live, host:
        commit, _ = timed(lambda: model.apply(plan, optimizer))
    return {
        "parameters": plan.params_before, "parameters_after": plan.params_after,
        "bytes_before": before, "bytes_peak": live.peak, "bytes_after": live.now,
        "peak_above": live.peak - before, "host_peak": host.peak,
        "largest_cut_parameter_bytes": 2 * largest_cut,
        "plan_seconds": seconds, "commit_seconds": commit,
    }  # fmt: skip


def couples(model: CompiledModel) -> Any:
    return [c for c in model.couplings.couples if c.kind in ("qk", "vo", "ffn")]


def communication(model: CompiledModel, ranks: int = 64) -> Row:
    """Numbers that each rank sends in a round, beside what a step sends anyway."""
    sums = FisherSums(model.couplings, model.removal)
    numbers = 1 + sum(v.numel() for v in sums.state_dict().values() if isinstance(v, torch.Tensor))
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "couples": len(couples(model)), "components": len(model.couplings.couple_of),
        "sent_by_each_rank": 8 * numbers, f"received_by_each_of_{ranks}": 8 * numbers * (ranks - 1),
        "gradients_of_a_step": gradients, "ring_all_reduce_of_a_step": 2 * gradients * (ranks - 1) // ranks,
    }  # fmt: skip


def reading(config: dict[str, int]) -> Row:
    """Bytes above the steady state while the gradients of one layer are read, on the CPU."""
    small = {**config, "vocab_size": 64}
    model = llama(small, layers=1, device="cpu")
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    fisher = ecospa_fx.FisherAccumulator(model)
    largest = max(model.get_parameter(w.parameter).numel() for c in couples(model) for w in c.weights)
    live = Live("cpu", [t for p in model.parameters() for t in (p.detach(), p.grad) if t is not None])
    before = live.now
    with live, torch.no_grad():
        seconds, _ = timed(fisher.update)
    return {
        "reading_peak_above": live.peak - before, "largest_read_entries": largest,
        "bytes_for_each_entry": round((live.peak - before) / largest, 2), "seconds_one_layer": seconds,
    }  # fmt: skip


def measure(name: str) -> Row:
    """All of it for one size."""
    config = CONFIGS[name]
    seconds, model = timed(lambda: llama(config))
    analysis, _ = timed(lambda: model.couplings)
    row = {"model": name, "capture_seconds": seconds, "analysis_seconds": analysis}
    return {**row, **communication(model), **removal(model), **reading(config)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["7b"], choices=[*CONFIGS])
    torch.set_num_threads(1)
    for name in parser.parse_args(argv).names:
        print(json.dumps(measure(name)), flush=True)


if __name__ == "__main__":
    main()
