"""Every comparison in one command: ``python -m benchmarks.report --json FILE --page docs/benchmarks.md``.

Each benchmark runs as a command of its own, of one thread, and each result is kept with its command, the
machine and the load as soon as it is there. What is timed runs alone, quality after it, ``--abreast`` at a
time. ``--resume`` goes on where an earlier run stopped; what no time is left for is named on the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import page
from benchmarks.peers import environment
from benchmarks.peers.jobs import jobs as peer_jobs
from benchmarks.perplexities import joined
from benchmarks.quality_jobs import jobs as quality_jobs
from benchmarks.store import FILE, Job, Store, run_all

SMALL = ("--width", "128", "--hidden", "352")


def own_jobs(quick: bool) -> list[Job]:
    """What is measured beside the other libraries."""
    runs = ("-m", "benchmarks.runs")
    decode = ("-m", "benchmarks.decode", "--rounds", "1" if quick else "5")
    depth = ("-m", "benchmarks.depth", "--json", FILE)
    if quick:
        few = ("--ratios", "0.5", "--rounds", "1", "--heads-count", "4", "--kv-heads", "4")
        return [
            Job("runs", (*runs, *SMALL, *few)),
            Job("decode", (*decode, *SMALL, "--heads", "4", "--batches", "1", "--prompt", "16")),
            Job("rounds", ("-m", "benchmarks.rounds", "--layers", "2")),
            Job("nodes", (*depth, "--layers", "2", "4", *SMALL, "--heads", "4")),
        ]
    return [
        Job("runs", runs, 1800.0),
        Job("rounds", ("-m", "benchmarks.rounds")),
        Job("decode", decode, 900.0),
        Job("nodes", depth, 900.0),
        Job("runs", (*runs, "--inductor", "--ratios", "0.5", "--round-to", "1", "8"), 1800.0),
    ]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where results are kept")
    parser.add_argument("--page", type=Path, help="page to write; its plots go into a folder of its name")
    parser.add_argument(
        "--environment", type=Path, help="folder for the other libraries; without: ours alone"
    )
    parser.add_argument("--quality", action="store_true", help="also what models say, see benchmarks.quality")
    parser.add_argument("--corpus", type=Path, help="of benchmarks.quality")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="of benchmarks.quality")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds: minutes")
    parser.add_argument("--abreast", type=int, default=2, help="commands of --quality at a time, 6 GiB each")
    parser.add_argument("--resume", action="store_true", help="keep what the file holds")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin nothing after so many")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run what is not there yet, and write the page."""
    options = arguments(given)
    store = Store(options.json, options.resume)
    peers = environment.make(options.environment) if options.environment else None
    jobs = [*own_jobs(options.quick), *peer_jobs(peers, options.quick)]
    if options.quality:
        jobs += quality_jobs(peers, options.quick, options.corpus, options.others)
    left = run_all(jobs, store, 60 * options.minutes, options.abreast)
    if options.page:
        page.write(options.page, store, quality(store), [job.command for job in left])


def quality(store: Store) -> page.Row | None:
    """The rows of all commands that measured perplexity."""
    return joined(
        [
            {**r["about"], "command": r["command"], "rows": r["rows"]}
            for r in store.section("quality")
            if r["rows"]
        ]
    )


if __name__ == "__main__":
    main()
