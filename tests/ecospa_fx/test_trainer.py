"""The callback for ``transformers.Trainer``, and accelerate alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import ecospa_fx
from ecospa_fx import EcoSpaCallback, LoadError, PlanError, ScheduleError, SparsitySchedule
from tests.models.snapshot import identical

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and accelerate warn of themselves

DATA = [
    {
        "input_ids": (ids := torch.randint(50, (12,), generator=torch.Generator().manual_seed(i))),
        "labels": ids,
    }
    for i in range(32)
]
HALF: dict[str, Any] = {"target_ratio": 0.5, "every": 3, "end": 6}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def trainer(folder: Path, callback: EcoSpaCallback, **more: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **more,
    }
    model = arguments.pop("model", None) or llama()
    args = TrainingArguments(str(folder), **arguments)
    return Trainer(model, args, train_dataset=DATA, eval_dataset=DATA[:4], callbacks=[callback])


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_a_run_and_its_continuation(tmp_path: Path) -> None:
    """Trains, evaluates, logs, saves; and from the checkpoint between two rounds it goes on bit for bit."""
    callback = EcoSpaCallback(**HALF)
    run = trainer(tmp_path, callback)
    run.train()
    assert callback.compiled is not None
    assert len(callback.reports) == 2
    report = callback.reports[-1]
    assert report.coupled_after <= 0.5 * callback.reports[0].coupled_before
    logged = [entry["sparsity"] for entry in run.state.log_history if "loss" in entry]
    assert logged[0] == logged[1] == 0 < logged[2] < logged[5] == logged[7]
    assert run.state.log_history[-1]["parameters"] == report.params_after
    assert run.evaluate()["eval_loss"] > 0

    path = tmp_path / "checkpoint-4"
    assert (path / "sparsity.json").is_file()
    again = EcoSpaCallback(**HALF, resume_from_checkpoint=path)
    second = trainer(tmp_path / "second", again)
    second.train(resume_from_checkpoint=str(path))
    assert losses(second) == losses(run)
    assert identical(dict(second.model.named_parameters()), dict(run.model.named_parameters()))
    assert [r.to_dict()["losses"] for r in again.reports] == [r.to_dict()["losses"] for r in callback.reports]

    callback.compiled.save(tmp_path / "small")
    small = ecospa_fx.load(tmp_path / "small", llama())
    ids = DATA[0]["input_ids"][None]
    run.model.eval()
    small.eval()
    assert torch.equal(small(input_ids=ids).logits, run.model(input_ids=ids).logits)

    with pytest.raises(ScheduleError, match=r"EcoSpaCallback\(\.\.\., resume_from_checkpoint=path\)"):
        trainer(tmp_path / "third", EcoSpaCallback(**HALF)).train(resume_from_checkpoint=str(path))


def test_accumulation_clipping_and_bfloat16(tmp_path: Path) -> None:
    callback = EcoSpaCallback(**HALF)
    run = trainer(
        tmp_path, callback, bf16=True, gradient_accumulation_steps=2, max_grad_norm=0.5, save_strategy="no"
    )
    run.train()
    assert len(callback.reports) == 2
    assert all(torch.isfinite(torch.tensor(losses(run))))
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_checkpointing_of_the_trainer_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for on in (True, False):
        more = {"gradient_checkpointing": on, "save_strategy": "no"}
        torch.manual_seed(0)
        runs.append(trainer(tmp_path / str(on), EcoSpaCallback(**HALF), **more))
        runs[-1].train()
    assert losses(runs[0]) == losses(runs[1])


@pytest.mark.filterwarnings("ignore")  # peft and the Trainer ask each other for names of the past
def test_adapters_in_a_trainer_go_on_bit_for_bit(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def run(folder: Path, path: Path | None = None) -> tuple[Trainer, EcoSpaCallback]:
        torch.manual_seed(1)
        model = peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules="all-linear"))
        callback = EcoSpaCallback(target_ratio={"ffn": 0.5}, every=3, end=6, resume_from_checkpoint=path)
        found = trainer(folder, callback, model=model)
        found.train(resume_from_checkpoint=path and str(path))
        return found, callback

    whole, callback = run(tmp_path)
    again, _ = run(tmp_path / "second", tmp_path / "checkpoint-4")
    assert losses(again) == losses(whole)
    assert identical(dict(again.model.named_parameters()), dict(whole.model.named_parameters()))
    assert callback.compiled is not None
    ids = DATA[0]["input_ids"][None]
    whole.model.eval()
    merged = ecospa_fx.merge_adapters(callback.compiled).eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, whole.model(input_ids=ids).logits)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="at most"):
        trainer(tmp_path, EcoSpaCallback(target_ratio=0.999, every=1, end=2)).train()
    with pytest.raises(ScheduleError, match="load_best_model_at_end"):
        trainer(
            tmp_path, EcoSpaCallback(**HALF), load_best_model_at_end=True, eval_strategy="steps", eval_steps=4
        )
    with pytest.raises(LoadError, match="no checkpoint"):
        trainer(tmp_path, EcoSpaCallback(**HALF, resume_from_checkpoint=True))
    with pytest.raises(LoadError, match="no SparsitySchedule was saved"):
        trainer(tmp_path, EcoSpaCallback(**HALF, resume_from_checkpoint=tmp_path))


def accelerated(folder: Path, stop: int | None = None, resume: bool = False, **more: Any) -> list[float]:
    """Eight steps with accelerate alone; one may stop in between, and another resume there."""
    accelerator = Accelerator(cpu=True, **more)
    compiled = ecospa_fx.compile(llama())
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.01)
    loader = DataLoader(DATA, batch_size=4)  # type: ignore[arg-type]
    compiled, optimizer, loader = accelerator.prepare(compiled, optimizer, loader)
    schedule = SparsitySchedule(compiled, optimizer, **HALF)
    found = []
    for step, batch in enumerate(loader, 1):
        if resume and step <= 4:
            continue
        if resume and step == 5:  # the loader has drawn its random numbers
            schedule.load(folder)
            accelerator.load_state(str(folder))
        loss = compiled(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(compiled.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        found.append(loss.item())
        if step == stop:
            accelerator.save_state(str(folder))
            schedule.save(folder)
            return found
    assert schedule.done
    return found


def test_accelerate_alone(tmp_path: Path) -> None:
    expected = accelerated(tmp_path / "whole")
    assert accelerated(tmp_path, stop=4) == expected[:4]
    assert accelerated(tmp_path, resume=True) == expected[4:]


def test_the_callback_is_imported_when_it_is_asked_for() -> None:
    assert ecospa_fx.EcoSpaCallback is EcoSpaCallback
    with pytest.raises(AttributeError, match="has no attribute 'EcoSpaCallbck'"):
        _ = ecospa_fx.EcoSpaCallbck  # type: ignore[attr-defined]
