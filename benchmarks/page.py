"""Results as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.store import Store

Row = Mapping[str, Any]
MARK = "<!-- What follows is written by benchmarks.report: words of your own go above this line. -->"
TITLE = "# Benchmarks\n\n`python -m benchmarks.report` measured this, on the machine named below.\n"


def write(page: Path, store: Store, quality: Row | None, missing: Sequence[str]) -> None:
    """Write the page and its plots, which lie in a folder of the page's name.

    Args:
        page: the file; what stands above the mark stays.
        store: results.
        quality: what ``benchmarks.quality --json`` wrote, if there is any.
        missing: commands that no time was left for.
    """
    above = page.read_text().partition(MARK)[0] if page.exists() else f"{TITLE}\n"
    parts = [
        compile_part(page, store), depth_part(store), run_part(page, store), decode_part(store),
        memory_part(store), quality_part(page, quality), dictionary_part(store), missing_part(missing),
        commands_part(store),
    ]  # fmt: skip
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(above + MARK + "\n\n" + "\n".join(part for part in parts if part))


def compile_part(page: Path, store: Store) -> str:
    """Time and memory from model to pruned model."""
    rows = found(store, "peers")
    header = ["model", "library", "CPU s", "s", "GiB above the model", "model GiB", "parameters", "runs"]
    lines = [
        [
            r["model"] + (", meta" if r.get("device") == "meta" else ""), r["library"],
            *(number(r.get(n)) for n in ("cpu_seconds", "seconds", "peak_above_gib", "model_gib")),
            sizes(r), verdict(r),
        ]
        for r in rows
    ]  # fmt: skip
    deep = found(store, "depth")
    result = f"## From model to pruned model\n\n{table(header, lines)}\n"
    if not plots.depth(deep):
        return result if rows else ""
    picture = draw(page, "depth", plots.depth(deep), "layers", "CPU seconds", log=True)
    return result + f"\n### Against depth\n\n{pivot(deep)}\n\n{failures(deep)}{picture}\n"


def depth_part(store: Store) -> str:
    """What the compiler's own steps cost for each node."""
    rows = found(store, "nodes")
    if not rows:
        return ""
    header = list(rows[0])
    return f"### Our own steps\n\n{table(header, [[number(r[k]) for k in header] for r in rows])}\n"


def run_part(page: Path, store: Store) -> str:
    """Speed-ups of prompts and training steps."""
    rows = found(store, "runs")
    header = ["gone", "multiples of", "heads", "what", "FLOPs", "times as fast", "least to largest",
              "share of FLOPs", "bytes of parameters"]  # fmt: skip
    lines = [
        [
            f"{r['ratio']:.0%}", str(r["round_to"]), r["heads"],
            r["what"] + (", torch.compile" if r["inductor"] else ""),
            number(r["flop_speedup"]), number(r["speedup"]), f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['share']:.0%}", f"{r['bytes_share']:.0%}",
        ]
        for r in rows if "error" not in r
    ]  # fmt: skip
    if not lines:
        return ""
    picture = draw(page, "speedup", plots.speedup(rows), "FLOPs: dense over smaller", "times as fast",
                   line=False, equal=True)  # fmt: skip
    return f"## Prompts and training steps\n\n{table(header, lines)}\n\n{failures(rows)}{picture}\n"


def decode_part(store: Store) -> str:
    """Tokens with a cache."""
    rows = found(store, "decode")
    header = ["what", "batch", "dense ms", "compiled, times as fast", "smaller, times as fast", "FLOPs"]
    names = ("dense_ms", "compiled_speedup", "smaller_speedup", "flop_speedup")
    lines = [[r["what"], str(r["batch"]), *(number(r[n]) for n in names)] for r in rows]
    return f"## With a cache\n\n{table(header, lines)}\n" if rows else ""


def memory_part(store: Store) -> str:
    """Memory of a round."""
    rows = found(store, "rounds")
    names = {
        "optimizer": "optimizer", "steady_mib": "steady state, MiB",
        "largest_couple_mib": "largest couple, MiB",
        "reading_above_mib": "reading", "planning_above_mib": "planning", "cutting_above_mib": "cutting",
        "over_largest_couple": "most, over the largest couple", "over_model": "over the dense parameters",
        "cutting_resident_above_mib": "cutting, resident",
    }  # fmt: skip
    lines = [[number(r.get(n)) for n in names] for r in rows]
    text = "MiB above the steady state (parameters, gradients, moments) in each stage of a round."
    return f"## Memory of a round\n\n{text}\n\n{table(list(names.values()), lines)}\n" if rows else ""


def quality_part(page: Path, result: Row | None) -> str:
    """Perplexity by size, on every text."""
    if not result:
        return "## Quality\n\nNot measured in this run (`--quality`); see [scores.md](scores.md).\n"
    picture = draw(page, "quality", plots.quality(result), "million parameters", "perplexity over dense")
    texts = list(dict.fromkeys(name for r in result["rows"] for name in r.get("others", {})))
    rows = [
        [
            plots.method(r), f"{r['ratio']:.0%}", f"{r['params'] / 1e6:.1f}", perplexity(r["perplexity"]),
            number(r["perplexity"] / result["dense"]),
            *(perplexity(r.get("others", {}).get(name)) for name in texts),
        ]
        for r in sorted(result["rows"], key=lambda r: (r["ratio"], r["steps"], r["perplexity"]))
    ]  # fmt: skip
    header = ["method", "gone", "million parameters", "perplexity", "over dense", *texts]
    lead = f"SmolLM2-135M-Instruct, dense: {result['dense']:.2f}. {result['machine']}."
    return f"## Quality\n\n{lead}\n\n{table(header, rows)}\n\n{picture}\n"


def dictionary_part(store: Store) -> str:
    """The reverse dictionary: what finds its word."""
    rows = found(store, "dictionary")
    header = ["method", "gone", "million parameters", "found, %"]
    cells = {(r["ratio"], -r["top1"], r["method"]): f"{r['params'] / 1e6:.1f}" for r in rows if "top1" in r}
    lines = [[name, f"{ratio:.0%}", size, number(-top)] for (ratio, top, name), size in sorted(cells.items())]
    text = "Glosses that find their word among 200, all-MiniLM-L6-v2, one-shot."
    failed = failures([r for r in rows if "error" in r])
    return f"### Reverse dictionary\n\n{text}\n\n{table(header, lines)}\n\n{failed}" if rows else ""


def perplexity(value: float | None) -> str:
    """One digit; those of broken models as powers of ten."""
    return "" if value is None else f"{value:.1f}" if value < 1e4 else f"{value:.0e}"


def missing_part(commands: Sequence[str]) -> str:
    """What is to be run yet."""
    lines = "\n".join(f"- `{command}`" for command in commands)
    return f"## Not run\n\nNo time was left for:\n\n{lines}\n" if commands else ""


def commands_part(store: Store) -> str:
    """Every command, by machine, with the load before it: processes that want a core, over a minute."""
    machines: dict[str, list[list[str]]] = {}
    for result in store.results.values():
        where = result["machine"]
        told = ", ".join(f"{k} {v}" for k, v in where.items() if k != "load")
        line = [
            f"`{result['command']}`",
            str(where["load"]),
            str(result["took_s"]),
            result.get("error", "well"),
        ]
        machines.setdefault(told, []).append(line)
    header = ["command", "load", "took s", "ended"]
    parts = [f"On {told}:\n\n{table(header, lines)}\n" for told, lines in machines.items()]
    return "\n".join(["## Commands\n", *parts])


def found(store: Store, section: str) -> list[dict[str, Any]]:
    """Rows of a section; a command without any gives one that says why."""
    rows: list[dict[str, Any]] = []
    for result in store.section(section):
        rows += result["rows"] or [{**asked(result["command"]), "error": result.get("error", "no rows")}]
    return rows


def asked(command: str) -> dict[str, Any]:
    """Library and model of a command that did not come to say them."""
    import shlex

    words = shlex.split(command)
    where = words.index("benchmarks.peers.case") if "benchmarks.peers.case" in words else None
    named = {} if where is None else {"library": words[where + 1], "model": words[where + 2]}
    layers = {"layers": int(words[words.index("--layers") + 1])} if "--layers" in words else {}
    return {**named, **layers}


def pivot(rows: Iterable[Row]) -> str:
    """CPU seconds: a line for each depth, a column for each library and model."""
    cells = {
        (r["layers"], f"{r['library']}, {r['model']}"): number(r["cpu_seconds"])
        if r.get("pruned")
        else "failed"
        for r in rows
    }
    columns = list(dict.fromkeys(name for _, name in cells))
    depths = sorted({layers for layers, _ in cells})
    lines = [[str(d), *(cells.get((d, c), "") for c in columns)] for d in depths]
    return table(["layers", *columns], lines)


def failures(rows: Iterable[Row]) -> str:
    """What was said by those that failed."""
    names = ("library", "model", "layers", "method", "ratio", "round_to", "heads")
    lines = [
        f"- {', '.join(f'{r[n]}' for n in names if n in r)}: {_plain(r['error'])}"
        for r in rows if "error" in r
    ]  # fmt: skip
    return "Failed:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def draw(page: Path, name: str, lines: plots.Lines, across: str, up: str, **options: bool) -> str:
    """Draw, and give the link; nothing where there is nothing to draw."""
    if not lines:
        return ""
    file = page.with_suffix("") / f"{name}.svg"
    plots.plot(file, lines, across, up, **options)
    return f"![{up} against {across}]({file.relative_to(page.parent).as_posix()})\n"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)


def sizes(row: Row) -> str:
    """Millions of parameters, before and after."""
    after = f" → {row['parameters_after'] / 1e6:,.1f}" if "parameters_after" in row else ""
    return f"{row['parameters'] / 1e6:,.1f}{after} M" if "parameters" in row else ""


def verdict(row: Row) -> str:
    """Whether the pruned model answers, or what was said."""
    if "error" in row:
        return str(row["error"])
    return ("yes" if row.get("runs") else "no") if row.get("pruned") else "nothing was removed"


def number(value: Any) -> str:
    """Two digits behind the point; words and whole numbers as they are."""
    return f"{value:,.2f}" if isinstance(value, float) else "" if value is None else str(value)


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
