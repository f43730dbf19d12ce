"""Draw the coupling graph of the quickstart's block to docs/coupling.svg (needs the `plots` extra)."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import networkx as nx
import torch

import ecospa_fx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "examples"))
from quickstart import Block  # noqa: E402

COLOURS = {
    "qk": "#4477aa",
    "vo": "#228833",
    "ffn": "#ccbb44",
    "lowrank": "#aa3377",
    "conv": "#66ccee",
    "head": "#ee6677",
}


def positions(graph: nx.Graph) -> dict[str, tuple[float, float]]:
    """Weights on the left, couples in the middle, and on the right the weights that only sum over them."""
    couples = [n for n, kind in graph.nodes(data="bipartite") if kind == "couple"]
    weights = [n for n, kind in graph.nodes(data="bipartite") if kind == "weight"]
    summing = [w for w in weights if all(role == "in" for _, _, role in graph.edges(w, data="role"))]
    columns = [w for w in weights if w not in summing], couples, summing
    return {
        node: (float(x), -(row + 0.5) / len(column))
        for x, column in enumerate(columns)
        for row, node in enumerate(column)
    }


def draw(graph: nx.Graph, path: Path) -> None:
    """Draw the graph to an SVG that is the same, byte for byte, each time."""
    plt.rcParams.update({"svg.hashsalt": "coupling", "svg.fonttype": "none", "font.size": 11})
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    place = positions(graph)
    for couple, weight, edge in graph.edges(data=True):
        couple, weight = sorted((couple, weight), key=lambda n: graph.nodes[n]["bipartite"])
        colour = COLOURS.get(graph.nodes[couple]["kind"], "#888888")
        (x0, y0), (x1, y1) = place[weight], place[couple]
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=2, zorder=1)
        label = f"{'rows' if edge['axis'] == 0 else 'columns'}"
        axes.text(0.62 * x0 + 0.38 * x1, 0.62 * y0 + 0.38 * y1, label, size=8, ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=2)  # fmt: skip
    for node, data in graph.nodes(data=True):
        x, y = place[node]
        if data["bipartite"] == "couple":
            text, colour = f"{node}\n{data['num_units']} units", COLOURS.get(data["kind"], "#888888")
        else:
            text, colour = f"{node}\n{' × '.join(map(str, data['shape']))}", "#dddddd"
        ink = "black" if colour in ("#dddddd", "#ccbb44", "#66ccee") else "white"
        box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"}
        axes.text(x, y, text, ha="center", va="center", color=ink, bbox=box, zorder=3)
    axes.set(xlim=(-0.3, 2.3), ylim=(-1.02, 0.02))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Compile the block and draw what its weights are coupled with."""
    torch.manual_seed(0)
    compiled = ecospa_fx.compile(Block(), args=(torch.randn(2, 11, 64),))
    draw(compiled.couplings.graph, DOCS / "coupling.svg")


if __name__ == "__main__":
    main()
