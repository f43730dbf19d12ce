"""Which library gets which model."""

from __future__ import annotations

import sys

from benchmarks.peers.libraries import LIBRARIES
from benchmarks.store import Job

OURS = "ecospa-fx"
LARGE = ("llama-7b", "llama-70b")
"""On the meta device, which only ours can do without weights."""


def jobs(peers: str | None, quick: bool) -> list[Job]:
    """Every case; those of the other libraries only with an interpreter that has them."""
    seconds = 120.0 if quick else 240.0
    names = ("llama-gqa",) if quick else ("gpt2", "gpt2-linear", "llama-135m", "llama-1b-mha", "llama-1b")
    depths = (2, 4) if quick else (2, 4, 8, 16, 32, 64, 128)
    found = [case(library, name, peers, seconds) for name in names for library in _both(peers)]
    for name in ("llama", "plain"):
        for layers in depths:
            found += [case(lib, name, peers, seconds, layers) for lib in _for(name, layers, peers)]
    large = () if quick else LARGE
    return found + [case(OURS, name, None, 600.0, None, "meta") for name in large]


def case(
    library: str, name: str, peers: str | None, seconds: float, layers: int | None = None, device: str = "cpu"
) -> Job:
    """One library and one model."""
    arguments = ["-m", "benchmarks.peers.case", library, name]
    arguments += ["--layers", str(layers)] if layers else []
    arguments += ["--device", device] if device != "cpu" else []
    section = "depth" if layers else "peers"
    python = sys.executable if library == OURS or peers is None else peers
    return Job(section, tuple(arguments), seconds, python)


def _both(peers: str | None) -> list[str]:
    return [name for name in LIBRARIES if name == OURS or (peers and "," not in name)]


def _for(name: str, layers: int, peers: str | None) -> list[str]:
    """Of ways to use a library that need minutes for two layers, two depths say enough."""
    if name == "plain" and peers and layers <= 4:
        return [n for n in LIBRARIES if "," in n or n != "torch-kirigami" or layers == 2]
    return [n for n in _both(peers) if n != "torch-kirigami"]
