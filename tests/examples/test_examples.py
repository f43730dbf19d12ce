"""Every script in examples/ runs, and prints what it promises."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecospa_fx.rules import TABLE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPECTED = {
    "custom_op.py": ["0 couples before:", "1 couple after:"],
    "llama.py": ["qk", "vo", "ffn", "model.layers.0.self_attn.k_proj.weight"],
    "quickstart.py": ["qk", "vo", "ffn"],
    "save_load.py": ["same output: True"],
    "train_gpt.py": ["held-out perplexity", "MB of training memory"],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run an example in this process and return what it printed; rules that it taught are taken back."""

    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    rules = dict(TABLE._rules)
    yield run_example
    TABLE._rules.clear()
    TABLE._rules.update(rules)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example_runs(name: str, run: Callable[..., str]) -> None:
    printed = run(name, *(["--quick"] if name == "train_gpt.py" else []))
    missing = [text for text in EXPECTED[name] if text not in printed]
    assert not missing, f"{missing} not in what {name} printed:\n{printed}"


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"train_gpt.py"}))
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
