"""Plots of results, as SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Lines = Mapping[str, Sequence[tuple[float, float]]]
_BROKEN = 5.0
_FEW = 8
"""More lines than these have their names beside the picture."""


def plot(file: Path, lines: Lines, across: str, up: str, *, log: bool = False, line: bool = True,
         equal: bool = False) -> None:  # fmt: skip
    """Draw named lines of points.

    Args:
        file: where to; the same points give the same bytes.
        lines: points by name, in the order of the legend.
        across: what the horizontal axis counts, with its unit.
        up: what the vertical one does.
        log: logarithmic axes.
        line: whether points are joined.
        equal: draw the diagonal, where both are equal.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ecospa_fx"
    from matplotlib import pyplot

    many = len(lines) > _FEW
    figure, axes = pyplot.subplots(figsize=(9.6 if many else 6.4, 4.8 if many else 4.0), layout="constrained")
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20" if many else "tab10").colors)
    for (name, points), mark in zip(lines.items(), "osD^vPX*<>" * len(lines), strict=False):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, mark, linestyle="-" if line else "none", label=name, markersize=5)
    if equal:
        axes.axline((1, 1), slope=1, color="gray", linestyle=":", linewidth=1)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    if many:
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def grouped(rows: Iterable[Row], name: Callable[[Row], str], x: str, y: str) -> Lines:
    """Points of rows that have both values, by name."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            found[name(row)].append((row[x], row[y]))
    return found


def depth(rows: Sequence[Row]) -> Lines:
    """CPU seconds from model to pruned model, by layers."""
    done = [row for row in rows if row.get("pruned")]
    return grouped(done, lambda r: f"{r['library']}, {r['model']}", "layers", "cpu_seconds")


def speedup(rows: Sequence[Row]) -> Lines:
    """Measured against predicted speed-up."""
    smaller = [row for row in rows if row.get("ratio")]
    return grouped(smaller, lambda r: f"{r['what']}, {_pattern(r)}", "flop_speedup", "speedup")


def quality(result: Row) -> Lines:
    """Perplexity over that of the dense model, by million parameters; broken models would hide the others."""
    rows = [
        {**r, "millions": r["params"] / 1e6, "over": r["perplexity"] / result["dense"]}
        for r in result["rows"]
        if r["perplexity"] < _BROKEN * result["dense"]
    ]
    return grouped(rows, method, "millions", "over")


def method(row: Row) -> str:
    """Its name, and for how long it was trained afterwards."""
    return str(row["method"]) + (f", {row['steps']} steps" if row.get("steps") else "")


def _pattern(row: Row) -> str:
    return f"multiples of {row['round_to']}" if row["heads"] == "uniform" else f"{row['heads']} heads"
