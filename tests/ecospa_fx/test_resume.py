"""Resume: a run goes on bit for bit, and what does not fit is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import ecospa_fx
from ecospa_fx import CompiledModel, LoadError, OptimizerError, ScheduleError, SparsitySchedule
from tests.models.snapshot import identical, untouched
from tests.models.training import DENSE, batches, ffn, half, loss_of, size, train


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 10], ids=lambda n: f"after {n}")
@pytest.mark.parametrize("files", [False, True], ids=["in memory", "as files"])
def test_a_run_resumes_bit_for_bit(stop: int, files: bool, tmp_path: Path) -> None:
    def start() -> tuple[CompiledModel, Optimizer, SparsitySchedule]:
        compiled = ffn()
        optimizer = AdamW(compiled.parameters(), lr=0.01)
        return compiled, optimizer, half(compiled, optimizer)

    data = [next(batches(seed=i)) for i in range(14)]
    compiled, optimizer, schedule = start()
    expected = train(compiled, optimizer, schedule, iter(data), 14)

    first, first_optimizer, first_schedule = start()
    losses = train(first, first_optimizer, first_schedule, iter(data), stop)
    first_schedule.save(tmp_path)
    saved = copy.deepcopy(
        [x.state_dict() for x in (first_schedule, first, first_optimizer)]  # type: ignore[attr-defined]
    )

    second, second_optimizer, second_schedule = start()
    train(second, second_optimizer, second_schedule, batches(seed=99), 2)  # whatever it was before
    if files:
        second_schedule.load(tmp_path)
    else:
        second_schedule.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    second_optimizer.load_state_dict(saved[2])
    assert second_schedule.steps == stop if stop < 9 else 9
    losses += train(second, second_optimizer, second_schedule, iter(data[stop:]), 14 - stop)
    assert losses == expected
    assert identical(dict(second.named_parameters()), dict(compiled.named_parameters()))
    assert len(second_schedule.reports) == len(schedule.reports)


def test_the_state_is_json_but_for_its_tensors() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 4)
    state = schedule.state_dict()
    fisher = state.pop("fisher")
    assert json.loads(json.dumps(state)) == state
    assert {type(v) for v in fisher.values()} == {int, Tensor}


def test_a_state_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    compiled = ffn()
    optimizer = AdamW(compiled.parameters())
    schedule = half(compiled, optimizer)
    train(compiled, optimizer, schedule, batches(), 4)
    state = schedule.state_dict()

    wide = ecospa_fx.compile(
        nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.Linear(40, 10)).double(), args=(next(batches()),)
    )
    other = AdamW(wide.parameters())
    fresh = half(wide, other)
    with untouched(wide, other), pytest.raises(ScheduleError, match=r"does not fit the model: .*0\.weight"):
        fresh.load_state_dict(state)
    assert fresh.steps == 0

    ahead = ffn()
    loss_of(ahead, next(batches())).backward()
    ahead.sparsify(ratio=0.4, score=lambda context: -torch.arange(context.size).double().numpy())
    with pytest.raises(ScheduleError, match="gone already"):
        half(ahead, AdamW(ahead.parameters())).load_state_dict(state)

    short = ffn()
    optimizer = AdamW(short.parameters())
    fisher = {k: v[:3] if isinstance(v, Tensor) else v for k, v in state["fisher"].items()}
    with untouched(short, optimizer), pytest.raises(ScheduleError, match="Fisher sums are of another model"):
        half(short, optimizer).load_state_dict({**state, "fisher": fisher})

    twin = ffn()
    with pytest.raises(OptimizerError, match="taken with AdamW, and the run goes on with SGD"):
        half(twin, SGD(twin.parameters(), 0.1)).load_state_dict(state)
    with pytest.raises(OptimizerError, match="another order"):
        half(twin, AdamW(reversed(list(twin.parameters())))).load_state_dict(state)
    with pytest.raises(ScheduleError, match="every was 3, now 4"):
        half(twin, AdamW(twin.parameters()), every=4).load_state_dict(state)
    with pytest.raises(ScheduleError, match="lacks aims, begin, config"):
        half(twin, AdamW(twin.parameters())).load_state_dict({"format": 1})
    assert size(twin) == DENSE


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    compiled = ffn()
    schedule = half(compiled, AdamW(compiled.parameters()))
    with pytest.raises(LoadError, match=r"no sparsity\.json"):
        schedule.load(tmp_path)
    schedule.save(tmp_path)
    (tmp_path / "sparsity.json").write_text("{")
    with pytest.raises(LoadError, match="damaged"):
        schedule.load(tmp_path)
