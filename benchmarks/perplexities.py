"""Perplexities of several runs as one result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def joined(result: Row) -> Row:
    """One result with the rows of all runs, whose names say what the models went through before.

    Args:
        result: what ``benchmarks.quality --json`` wrote, or ``runs`` of it and of ``peers.quality``.
    """
    if "runs" not in result:
        return result
    rows = [_named(run, row, result["dense"]) for run in result["runs"] for row in run["rows"]]
    commands = "`, `".join(run["command"] for run in result["runs"])
    return {
        "dense": result["dense"],
        "command": commands,
        "machine": result["runs"][0]["machine"],
        "rows": rows,
    }


def _named(run: Row, row: Row, dense: float) -> Row:
    command = run["command"]
    name = row.get("method") or f"Torch-Pruning, {row['score']}{', global' if row['global'] else ''}"
    documents = command.partition("--gradients ")[2].split()
    name += f", {documents[0]} documents" if documents else ""
    balanced = "balanced, " if "--balance" in command else ""
    over = row["perplexity"] * dense / run.get("dense", dense)  # over the run's own dense model
    return {**row, "method": balanced + name, "perplexity": over}
