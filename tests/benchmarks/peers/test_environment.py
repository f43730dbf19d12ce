"""The other libraries' environment, with nothing installed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import environment, libraries


def test_it_sees_this_environment_s_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    really = subprocess.run

    def run(command: Any, **options: Any) -> Any:
        asked.append([str(word) for word in command])
        return None if "pip" in asked[-1] else really(command, **options)

    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setattr(
        environment.venv,
        "create",
        lambda folder, with_pip: really([sys.executable, "-m", "venv", "--without-pip", folder]),
    )
    python = environment.make(tmp_path / "peers")
    found = really([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    assert found.stdout.strip()
    installed = asked[-1][asked[-1].index("--no-deps") + 1 :]
    assert installed == sorted({package for package, _ in libraries.LIBRARIES.values() if package})
    assert all("==" in package for package in installed)
    asked.clear()
    assert environment.make(tmp_path / "peers") == python
    assert asked == []
