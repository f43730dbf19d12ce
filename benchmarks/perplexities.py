"""Perplexities of several runs as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def joined(runs: Sequence[Row]) -> dict[str, Any] | None:
    """One result with the rows of all runs, each over its own dense model; of equal rows the first.

    Args:
        runs: ``rows``, ``command``, ``machine`` and, but for other libraries, ``dense`` of each.

    Returns:
        The same of all together; None if none of them has rows of ours.
    """
    ours = [run for run in runs if "dense" in run]
    if not ours:
        return None
    dense = ours[0]["dense"]
    rows = [_named(run, row, dense) for run in runs for row in run["rows"] if "perplexity" in row]
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault((row["method"], row["ratio"], row["steps"]), row)
    return {"dense": dense, "machine": ours[0]["machine"], "rows": [*first.values()]}


def _named(run: Row, row: Row, dense: float) -> Row:
    """Balanced models are named so; another basis rounds otherwise, so each is over its own dense model."""
    balanced = "--balance" in run["command"] and row["ratio"] > 0
    over = row["perplexity"] * dense / run.get("dense", dense)
    return {**row, "method": ("balanced, " if balanced else "") + row["method"], "perplexity": over}
