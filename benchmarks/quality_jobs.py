"""Which rows the report's tables of quality have, and in what order they are measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.methods import plain
from benchmarks.store import FILE, Job

BEST = "gate, all sums repaired"
PEERS_BEST = "Taylor, global"
RATIOS = ("0.1", "0.3", "0.4", "0.5")
SETTINGS = ("--autocast", "--calibration", "48", "--gradients", "24", "--training", "100")
GLOSSES = ("--ratios", "0.2", "0.5", "--calibration", "1024", "--json", FILE)
QUICK = ("--calibration", "4", "--gradients", "2", "--evaluation", "2", "--length", "64", "--training", "4")


def jobs(peers: str | None, quick: bool, corpus: Path | None, others: Sequence[Path]) -> list[Job]:
    """Perplexity of SmolLM2 and the reverse dictionary of MiniLM; each needs what its module names.

    A fifth comes first, then the same after training, then other ratios. Nothing of it is timed.
    """
    text = (*(("--corpus", str(corpus)) if corpus else ()), *(QUICK if quick else SETTINGS))
    more = ("--others", *map(str, others)) if others else ()

    def ours(*arguments: str) -> Job:
        return Job(
            "quality", ("-m", "benchmarks.quality", *arguments, *text, "--json", FILE), 3600.0, timed=False
        )

    def theirs(*arguments: str) -> Job:
        command = ("-m", "benchmarks.peers.quality", *arguments, *text, "--json", FILE)
        return Job("quality", command, 3600.0, peers or sys.executable, timed=False)

    def dictionary(module: str, *arguments: str, python: str = sys.executable) -> Job:
        command = ("-m", module, *arguments, *GLOSSES)
        return Job("dictionary", command, 1800.0, python, timed=False)

    if quick:
        return [ours("--ratios", "0", "0.2", "--methods", "gate", "FLAP's score", "--steps", "2")]
    trained = ("--steps", "200")
    found = [
        ours("--ratios", "0", "0.2", "--methods", *plain(), *more),
        ours("--balance", "--ratios", "0.2", *RATIOS, "--methods", "gate", BEST, *more),
        theirs("--ratios", "0.2", *more),
        ours("--balance", "--ratios", "0", "0.2", "--methods", BEST, *trained, *more),
        theirs("--ratios", "0.2", "--rankings", PEERS_BEST, *trained, *more),
        ours("--ratios", "0.2", "--methods", "Taylor", "Fisher + Eq. 9 (the paper)", *trained, *more),
        ours("--ratios", *RATIOS, "--methods", *plain(), *more),
        theirs("--ratios", *RATIOS, *more),
        dictionary("benchmarks.dictionary"),
        dictionary("benchmarks.dictionary", "--balance", "--methods", "gate", BEST),
        dictionary("benchmarks.peers.dictionary", python=peers or sys.executable),
    ]
    return [job for job in found if peers or "benchmarks.peers" not in job.command]
