"""The page: tables and plots of every experiment that has a result."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from benchmarks.experiments import record

HEAD = """
Small models on real data, each sized for one core and about ten minutes of a machine that does nothing else:
what the paper claims, looked at with what fits there. Where a result falls behind the claim, it says so. This
page is written by `python -m benchmarks.experiments page` from the files beside its plots. One seed each.
"""
Result = dict[str, Any]


def prose(text: str) -> str:
    """A paragraph in lines of the same length."""
    return fill(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(x) for x in line) + " |" for line in lines)


def averaged(runs: list[list[float]]) -> list[float]:
    """The mean over seeds at each point."""
    return [round(mean(points), 1) for points in zip(*runs, strict=True)]


def plot(
    path: Path, curves: dict[str, list[tuple[float, float]]], x: str, y: str, scale: str = "linear"
) -> None:
    """Lines as an SVG file that is the same every time."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "ecospa_fx", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set(xlabel=x, ylabel=y, yscale=scale)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


class Page:
    """Writes the sections.

    Args:
        folder: of results, notes and plots; the page stands beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def section(
        self, name: str, result: Result, title: str, text: str, cells: str, precision: str = ""
    ) -> str:
        """A heading, what was done, the table, the plot, how it was measured, and what it shows."""
        plotted = (self.folder / f"{name}.svg").is_file()
        image = f"![{title}](experiments/{name}.svg)" if plotted else ""
        seconds = f"{result['seconds']:,} s on a busy machine"
        how = prose(f"`{result['command']}` ({result['machine']}; {seconds}). {precision}")
        parts = [f"## {title}", prose(text), cells, image, how, record.notes(name, self.folder)]
        return "\n\n".join(part for part in parts if part)

    def figure(self, name: str, result: Result) -> str:
        """Ways to make couples smaller."""
        runs = {run: averaged(found) for run, found in result["accuracy"].items()}
        curves = {run: [*enumerate(found, 1)] for run, found in runs.items()}
        plot(self.folder / f"{name}.svg", curves, "epoch", "accuracy in %")
        last = next(i for i, share in enumerate(result["gone"]) if share == max(result["gone"]))
        rows = [[run, found[last], found[-1]] for run, found in runs.items()]
        head = [
            "",
            f"right after the last removal (epoch {last + 1})",
            f"at the end (epoch {result['epochs']})",
        ]
        text = f"""A DeiT of width 64 with four layers learns Fashion-MNIST from scratch
        ({result["images"]:,} images
        an epoch, in the same order for all). From the second epoch on every couple loses the same number of
        parameters after each epoch, until {result["ratio"]:.0%} of what couples hold is gone. "Coupled"
        removes
        aligned pairs with this library, and so do "random" and "magnitude" with other scores. "Individual"
        lets
        each matrix of a couple choose its rows by its own L1 norm, so that the other matrix keeps partners of
        what is gone. "tSVD" replaces queries and keys, values and outputs by the best factors of their
        product;
        through an activation function there is no such product, and its feed-forward couples go by Eq. 9.
        Accuracy in %:"""
        precision = "The standard error of an accuracy on 5,000 images is about 0.5."
        title = "Coupled or individual removal"
        return self.section(name, result, title, text, table(head, rows), precision)

    def sweep(self, name: str, result: Result) -> str:
        """K and the threshold."""
        found = {(r["top_k"], r["threshold"]): averaged(r["accuracy"])[-1] for r in result["runs"]}
        thresholds = sorted({t for _, t in found})
        rows = [[f"K = {k}", *(found[k, t] for t in thresholds)] for k in sorted({k for k, _ in found})]
        text = f"""The same DeiT, {result["images"]:,} images an epoch for {result["epochs"]} epochs, one
        round an
        epoch, until {result["ratio"]:.0%} of the coupled parameters are gone. Accuracy at the end in %:"""
        cells = table(["", *(f"θ = {t}" for t in thresholds)], rows)
        return self.section(name, result, "K and θ of Algorithm 1", text, cells)

    def language(self, name: str, result: Result) -> str:
        """A GPT from scratch."""
        runs = {run: found[0]["perplexity"] for run, found in result["runs"].items()}
        curves = {run: [(p[0], p[1]) for p in points] for run, points in runs.items()}
        plot(self.folder / f"{name}.svg", curves, "step", "held-out perplexity", "log")
        places = (2, 5, -1)
        rows = [
            [run, f"{result['runs'][run][0]['parameters']:,}", *(f"{points[i][1]:.1f}" for i in places)]
            for run, points in runs.items()
        ]
        text = f"""Four layers of width 128, {result["steps"]} steps of {result["batch"][0]} ×
        {result["batch"][1]}
        tokens, the same for all. Eight rounds between a tenth and a half of the steps take
        {result["ratio"]:.0%} of the coupled parameters. "Dense, small" has the sparse model's size from the
        first
        step on. Held-out perplexity:"""
        cells = table(["", "parameters in the end", *(f"step {runs['dense'][i][0]}" for i in places)], rows)
        return self.section(name, result, "A GPT from scratch", text, cells)

    def encoder(self, name: str, result: Result) -> str:
        """MiniLM on WordNet."""
        runs = {run: found[0] for run, found in result["runs"].items()}
        rows = [
            [run, f"{found['parameters']:,}", *(f"{p[1]:.1f}" for p in found["accuracy"])]
            for run, found in runs.items()
        ]
        text = f"""all-MiniLM-L6-v2 learns which of WordNet's 45 labels a gloss has, in {result["steps"]}
        steps of
        {result["batch"][0]} glosses. Rounds between a tenth and a half of the steps leave
        {1 - result["ratio"]:.0%} of what couples hold. Accuracy on 1,024 held-out glosses in %:"""
        cells = table(
            ["", "parameters in the end", *(f"step {p[0]}" for p in runs["dense"]["accuracy"])], rows
        )
        precision = "The standard error of an accuracy on 1,024 glosses is about 1.5."
        return self.section(name, result, "MiniLM fine-tuned while it shrinks", text, cells, precision)

    def write(self) -> Path:
        """Write the page with a section for each result that is there."""
        ways = {
            "figure": self.figure,
            "sweep": self.sweep,
            "language": self.language,
            "encoder": self.encoder,
        }
        found = {name: record.load(name, self.folder) for name in ways}
        parts = [ways[name](name, result) for name, result in found.items() if result]
        path = self.folder.parent / "experiments.md"
        path.write_text("\n\n".join(["# Experiments", prose(HEAD), *parts]) + "\n", encoding="utf-8")
        return path


def main(folder: Path = record.FOLDER) -> None:
    """Write the page beside the folder of results."""
    print(Page(folder).write())
