"""``python -m benchmarks.zoo``: examine architectures and print the table."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.zoo import models, pool, report
from benchmarks.zoo.examine import Finding, examine, warm_up
from benchmarks.zoo.families import FAMILIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine what the command line names; the exit status says whether all of it works."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = options.names or stratified(options.family, options.limit)
    done = _load(options.json) if options.resume else {}
    findings = {name: done[name] for name in chosen if name in done}
    todo = [name for name in chosen if name not in findings]
    if todo:
        warm_up()
    for name, result in pool.run(examine, todo, options.workers, options.timeout):
        findings[name] = finding = Finding(**result) if result else _lost(name, options.timeout)
        print(_line(finding), file=sys.stderr, flush=True)
        if options.json:
            _save(options.json, {**done, **findings})
    ordered = [findings[name] for name in chosen]
    print(report.summary(ordered))
    if options.page:
        options.page.write_text(report.page(ordered, environment()))
    return 0 if all(f.passed for f in ordered) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types (default: all that run)")
    parser.add_argument("--family", default="", choices=["", *FAMILIES], help="only this family")
    parser.add_argument("--limit", type=int, help="only that many, evenly over the families")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one architecture")
    parser.add_argument("--json", type=Path, help="write results there as they come")
    parser.add_argument("--resume", action="store_true", help="keep the results that --json holds already")
    parser.add_argument("--page", type=Path, help="write the page for docs/ there")
    return parser


def stratified(family: str = "", limit: int | None = None) -> list[str]:
    """Architectures, the families in turn."""
    groups = [models.names(family=f) for f in FAMILIES if family in ("", f)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [name for name in turns if name is not None][:limit]


def environment() -> str:
    """Versions that the results hold for."""
    python = platform.python_version()
    return f"torch {torch.__version__}, transformers {transformers.__version__}, Python {python}"


def _lost(name: str, limit: float) -> Finding:
    text = f"the worker died, or was stopped after {limit:.0f} s"
    return Finding(name, models.info(name).family, stage="capture", message=text)


def _line(f: Finding) -> str:
    couples = " ".join(f"{kind}:{n}" for kind, n in f.couples.items())
    return f"{f.name:32} {f.stage:8} {f.worst:8.1e} {f.seconds:6.1f} s  {couples}  {f.message[:120]}"


def _load(path: Path | None) -> dict[str, Finding]:
    if path is None or not path.exists():
        return {}
    return {entry["name"]: Finding(**entry) for entry in json.loads(path.read_text())["findings"]}


def _save(path: Path, findings: dict[str, Finding]) -> None:
    document = {"environment": environment(), "findings": [vars(f) for f in findings.values()]}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1))
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
