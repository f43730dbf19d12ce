"""README.md keeps its promises: its commands are those of .ci/run, its example prints what it shows."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def without_measurements(text: str) -> str:
    """Times and round-off differ from machine to machine."""
    return re.sub(r"\d+\.\d+ s\b|\d\.\d+e-\d+", "*", text)


def test_tests_run_in_ci_as_the_readme_says() -> None:
    in_ci = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line.replace("pip install", "pip install --quiet") for line in blocks("bash")[1].splitlines()]
    assert [line for line in in_ci if line in commands] == commands


def test_the_minute_of_use_prints_what_it_shows() -> None:
    code = blocks("python")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    shown = next(text for text in blocks("text") if "parameters" in text and "outputs differ" in text)
    assert without_measurements(printed.getvalue()) == without_measurements(shown)


def test_a_pretrained_model_shrinks_by_the_lines_shown() -> None:
    code = next(text for text in blocks("python") if "balance" in text)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    batches = [{"input_ids": torch.arange(14).view(2, 7) + i} for i in range(3)]
    names = {"ecospa_fx": ecospa_fx, "model": model, "batches": batches, "loss": next_token}
    exec(compile(code, "README.md", "exec"), names)
    assert names["compiled"].verify(**batches[0]).within(1e-5)  # type: ignore[attr-defined]
    assert names["compiled"].removal.removed  # type: ignore[attr-defined]


def next_token(output: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = output.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten())


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/how-it-works.md", "examples/data/README.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing
