"""From model to pruned model, beside other libraries.

``python -m benchmarks.peers --environment FOLDER --json FILE`` makes an environment in the folder, installs
the other libraries there by name, and runs every case in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peers.environment import make
from benchmarks.peers.jobs import jobs
from benchmarks.store import Store, run_all


def main() -> None:
    """Run what the file does not hold yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--environment", type=Path, help="folder for the other libraries; without: ours alone"
    )
    parser.add_argument("--json", type=Path, required=True, help="where results are kept")
    parser.add_argument("--resume", action="store_true", help="keep what the file holds")
    parser.add_argument("--quick", action="store_true", help="small models only")
    options = parser.parse_args()
    peers = make(options.environment) if options.environment else None
    run_all(jobs(peers, options.quick), Store(options.json, options.resume), 7200.0)


if __name__ == "__main__":
    main()
