"""Distributed checkpoints: a run goes on with more ranks or fewer, and after a process has died."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, LoadError, SparsitySchedule, load_checkpoint, save_checkpoint
from tests.distributed.nets import adamw, batch, mine, model, sharded, stepped, trained
from tests.distributed.processes import Check, passed, run

STEPS, SAVED = 9, 5  # rounds come after steps 2, 4 and 6
Run = tuple[CompiledModel, AdamW, SparsitySchedule]


def begun(compiled: CompiledModel) -> Run:
    optimizer = adamw(compiled)
    return compiled, optimizer, SparsitySchedule(compiled, optimizer, target_ratio=0.5, every=2, end=6)


def close(found: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def from_one_to_two(folder: Path) -> None:
    """One process saved; two go on."""
    expected = torch.load(folder / "losses.pt")
    for name, first in (("one", SAVED), ("one_dense", 1)):
        run_ = begun(sharded())
        load_checkpoint(folder / name, *run_)
        close(trained(*run_, range(first, STEPS), mine), expected[first:])
        assert run_[0].verify().within(1e-9)


def from_two_to_two(folder: Path) -> None:
    """Two saved, and two go on: into a fresh model, and into one that has gone another way."""
    expected = torch.load(folder / "losses.pt")
    run_ = begun(sharded())
    trained(*run_, range(SAVED), mine)
    save_checkpoint(folder / "two", *run_)
    close(trained(*run_, range(SAVED, STEPS), mine), expected[SAVED:])
    fresh = begun(sharded())
    load_checkpoint(folder / "two", *fresh)
    close(trained(*fresh, range(SAVED, STEPS), mine), expected[SAVED:])
    begun_ = begun(sharded())
    trained(*begun_, range(3), mine)
    load_checkpoint(folder / "two", *begun_)
    close(trained(*begun_, range(SAVED, STEPS), mine), expected[SAVED:])


def without_a_schedule(folder: Path) -> None:
    """Model and optimizer alone, of a model that was cut by hand."""
    compiled = sharded()
    optimizer = adamw(compiled)
    stepped(compiled, optimizer, mine(batch(0)))
    compiled(mine(batch(0))).square().mean().backward()
    compiled.sparsify(ratio=0.4, optimizer=optimizer)
    optimizer.zero_grad()
    save_checkpoint(folder / "plain", compiled, optimizer)
    expected = stepped(compiled, optimizer, mine(batch(1)))
    other = sharded()
    other_optimizer = adamw(other)
    load_checkpoint(folder / "plain", other, other_optimizer)
    torch.testing.assert_close(stepped(other, other_optimizer, mine(batch(1))), expected)
    compiled.save(folder / "weights")
    if not dist.get_rank():
        loaded = ecospa_fx.load(folder / "weights", model().source)
        assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in compiled.parameters())


def dies(folder: Path) -> None:
    """A process is gone between two checkpoints; the last complete one stays."""
    run_ = begun(sharded())
    for step in range(STEPS):
        if step == 5 and dist.get_rank():
            os._exit(1)
        trained(*run_, range(step, step + 1), mine)
        if step in (1, 3):
            save_checkpoint(folder / "last", *run_)


CHECKS = (from_one_to_two, from_two_to_two, without_a_schedule)


def after_death(folder: Path) -> None:
    """Two new processes go on."""
    run_ = begun(sharded())
    load_checkpoint(folder / "last", *run_)
    assert run_[2].steps == 4
    close(trained(*run_, range(4, STEPS), mine), torch.load(folder / "losses.pt")[4:])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("checkpoint")
    run_ = begun(model())
    losses = []
    for step in range(STEPS):
        if step in (1, SAVED):
            save_checkpoint(folder / ("one" if step == SAVED else "one_dense"), *run_)
        losses += trained(*run_, range(step, step + 1), lambda x: x)
    torch.save(losses, folder / "losses.pt")
    return folder, run(CHECKS, folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_two_processes(check: Check, ran: tuple[Path, str]) -> None:
    folder, error = ran
    assert passed(check, folder), f"{check.__doc__}\n{error}"


@pytest.mark.parametrize("name", ["one", "one_dense", "two"])
def test_on_one_process(name: str, ran: tuple[Path, str]) -> None:
    first = 1 if name == "one_dense" else SAVED
    run_ = begun(model())
    load_checkpoint(ran[0] / name, *run_)
    close(trained(*run_, range(first, STEPS), lambda x: x), torch.load(ran[0] / "losses.pt")[first:])


def test_a_process_that_dies(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    assert run([dies], folder)
    assert run([after_death], folder) == ""


def test_what_does_not_fit(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = ran
    run_ = begun(model())

    def refused(path: Path, *more: Any) -> str:
        with pytest.raises(LoadError) as error:
            load_checkpoint(path, *more)
        assert not run_[0].removal.removed
        return str(error.value)

    assert "there is no removal.json" in refused(tmp_path / "none", *run_)
    assert "no schedule was saved" in refused(folder / "plain", *run_)
    other = ecospa_fx.compile(torch.nn.Linear(3, 3))
    assert "made from another model" in refused(folder / "two", other)
