"""What sparse training costs and saves: ``python -m benchmarks.training [names]``.

The model is the small GPT of ``examples/gpt`` on the text that ships with the project. Times that are
compared are taken in turn, in one process, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, SparsitySchedule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from gpt.measure import loss_of, training_bytes
from gpt.model import GPT
from gpt.text import Corpus, batches, load

Row = dict[str, Any]
VOCABULARY, CONTEXT, BATCH = 2048, 128, 8


@cache
def corpus() -> Corpus:
    return load(VOCABULARY)


def gpt(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(corpus().vocabulary, 256, 4, 8, 768, CONTEXT)


def data(steps: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(batches(corpus().train, BATCH, CONTEXT, steps, seed))


def adamw(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def train_step(model: nn.Module, optimizer: AdamW, batch: tuple[Tensor, Tensor]) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, *batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sparse(model: nn.Module, **settings: Any) -> tuple[CompiledModel, AdamW, SparsitySchedule]:
    compiled = ecospa_fx.compile(model)
    optimizer = adamw(compiled)
    return compiled, optimizer, SparsitySchedule(compiled, optimizer, **settings)


def overhead(steps: int = 40) -> Row:
    """Cost per step of reading gradients, in % of the step; and that of a round, in steps."""
    every = 64
    compiled, optimizer, schedule = sparse(gpt(), target_ratio=0.5, every=every, end=every)
    examples = data(steps)
    train_step(compiled, optimizer, examples[0])  # captures
    whole, reading = [], []
    update = schedule.fisher.update

    def watched(*args: Any, **kwargs: Any) -> None:
        reading.append(timed(lambda: update(*args, **kwargs)))

    schedule.fisher.update = watched  # type: ignore[method-assign]
    schedule.step()
    for batch in examples[1:]:
        whole.append(timed(lambda b=batch: (train_step(compiled, optimizer, b), schedule.step())))  # type: ignore[misc]
    read_steps = sum(schedule.ramp.reads(s, schedule.samples) for s in range(1, every + 1))
    dense_step = median(whole)
    schedule.steps = every - 1
    train_step(compiled, optimizer, examples[0])
    first_round = timed(schedule.step)
    return {
        "dense_step_s": dense_step,
        "reading_s": median(reading),
        "reading_percent_of_a_step_read": 100 * median(reading) / dense_step,
        "steps_read_of_interval": f"{read_steps} of {every}",
        "cost_percent_per_step": 100 * median(reading) * read_steps / every / dense_step,
        "round_s": first_round,
        "round_in_steps": first_round / dense_step,
    }


def memory() -> Row:
    """Bytes of all storages of parameters, gradients and moments, before and right after a round."""
    compiled, optimizer, schedule = sparse(gpt(), target_ratio=0.5, every=1, end=1)
    train_step(compiled, optimizer, data(1)[0])
    before = training_bytes(compiled, optimizer)
    report = schedule.step()
    assert report is not None
    after = training_bytes(compiled, optimizer)
    return {
        "bytes_before": before,
        "bytes_after": after,
        "bytes_ratio": after / before,
        "parameters_ratio": report.params_after / report.params_before,
    }


def time_saved(steps: int = 120) -> Row:
    """Dense and sparse for the same number of steps, step by step in turn.

    60 % of the coupled parameters are left in the end; rounds in the first third of the steps.
    """
    model = gpt()
    dense = copy.deepcopy(model)
    dense_optimizer = adamw(dense)
    compiled, optimizer, schedule = sparse(model, target_ratio=0.4, every=steps // 12, end=steps // 3)
    seconds: list[list[float]] = [[], []]
    losses: list[list[float]] = [[], []]
    for batch in data(steps):
        seconds[0].append(timed(lambda b=batch: losses[0].append(train_step(dense, dense_optimizer, b))))  # type: ignore[misc]

        def both(b: tuple[Tensor, Tensor] = batch) -> None:
            losses[1].append(train_step(compiled, optimizer, b))
            schedule.step()

        seconds[1].append(timed(both))
    return {
        "steps": steps,
        "rounds": len(schedule.reports),
        "coupled_left": schedule.reports[-1].coupled_after / schedule.reports[0].coupled_before,
        "dense_s": sum(seconds[0]),
        "sparse_s": sum(seconds[1]),
        "first_sparse_step_with_capture_s": seconds[1][0],
        "saved_percent": 100 * (1 - sum(seconds[1]) / sum(seconds[0])),
        "saved_percent_after_the_first_step": 100 * (1 - sum(seconds[1][1:]) / sum(seconds[0][1:])),
        "saved_percent_of_a_step_in_the_end": 100
        * (1 - median(seconds[1][steps // 2 :]) / median(seconds[0][steps // 2 :])),
        "dense_loss": sum(losses[0][-20:]) / 20,
        "sparse_loss": sum(losses[1][-20:]) / 20,
    }


@torch.no_grad()
def held_out(model: nn.Module, windows: int = 64) -> float:
    tokens = corpus().held_out[: windows * CONTEXT + 1]
    inputs, targets = tokens[:-1].view(windows, CONTEXT), tokens[1:].view(windows, CONTEXT)
    return (
        sum(float(loss_of(model, x, y)) for x, y in zip(inputs.split(16), targets.split(16), strict=True)) / 4
    )


def moments(seeds: int = 3, warm: int = 60, after: int = 10) -> Row:
    """Held-out loss after a round, with moments that follow and with moments that start anew."""
    row: Row = {"warm": warm, "after": after}
    for seed in range(seeds):
        compiled, optimizer, schedule = sparse(gpt(seed), target_ratio=0.3, every=warm, end=warm)
        examples = data(warm + after, seed)
        for batch in examples[:warm]:
            train_step(compiled, optimizer, batch)
            schedule.step()
        saved = copy.deepcopy([compiled.state_dict(), optimizer.state_dict()])
        found: Row = {"right_after": held_out(compiled)}
        for name in ("sliced", "reset"):
            compiled.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            if name == "reset":
                optimizer.state.clear()
            found[name] = []
            for count, batch in enumerate(examples[warm:], 1):
                train_step(compiled, optimizer, batch)
                if count in (1, 3, after):
                    found[name].append(round(held_out(compiled), 4))
        row[f"seed_{seed}"] = found
    return row


MEASURES: dict[str, Callable[[], Row]] = {
    "overhead": overhead, "memory": memory, "time_saved": time_saved, "moments": moments
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], help="all by default")
    torch.set_num_threads(1)
    print(json.dumps({"torch": torch.__version__, "machine": platform.processor() or platform.machine()}))
    for name in parser.parse_args(argv).names or MEASURES:
        print(json.dumps({"measure": name, **MEASURES[name]()}), flush=True)


if __name__ == "__main__":
    main()
