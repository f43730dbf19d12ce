"""A result as JSON: what was measured, by which command, on which machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "experiments"


def save(name: str, result: dict[str, Any], seconds: float, folder: Path = FOLDER) -> Path:
    """Write ``NAME.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    head = {"command": command(), "machine": machine(), "seconds": round(seconds)}
    path.write_text(json.dumps({**head, **result}, indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """What :func:`save` wrote, if it did."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def notes(name: str, folder: Path = FOLDER) -> str:
    """What a person wrote about the result: ``NAME.md``, if there is one."""
    path = folder / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def command() -> str:
    """The command line, without folders of this machine."""
    words = [Path(w).name if os.sep in w else w for w in sys.argv[1:]]
    return "python -m benchmarks.experiments " + shlex.join(words)


def machine() -> str:
    """The processor and torch's version."""
    return f"{_processor()}, {torch.get_num_threads()} thread, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())
