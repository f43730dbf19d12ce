"""The zoo's report: a table by family, what stopped the others, and what holds axes that could go."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.zoo.examine import Finding
from benchmarks.zoo.expected import Held, held
from benchmarks.zoo.families import FAMILIES

Row = tuple[str, ...]

# Torch-Pruning 1.6.1 on random samples of the same models, with its recommended settings and a generic head
# heuristic, only FFN and heads pruned, endless groups retried at GQA ratio 4.
OTHER = (
    ("graph", "dependency graph built", "87 %"),
    ("removal", "step() runs", "69 %"),
    ("complete", "every layer shrank", "53 %"),
    ("passed", "forward runs afterwards", "50 %"),
)
OTHER_MODELS = 149


def by_family(findings: Sequence[Finding]) -> list[Row]:
    """One row a family, and the sum."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding.family].append(finding)
    rows = [_row(family, groups[family]) for family in FAMILIES if groups[family]]
    return [*rows, _row("all", findings)]


def _row(title: str, findings: Sequence[Finding]) -> Row:
    total = len(findings)
    counts = (
        sum(f.captured for f in findings),
        sum(f.coupled for f in findings),
        sum(f.coupled and not held(f) for f in findings),
        sum(f.passed for f in findings),
        sum(f.passed and not held(f) for f in findings),
    )
    return (title, str(total), *(f"{n} ({n / max(total, 1):.0%})" for n in counts))


_PLACE = re.compile(r"\S*/(site-packages/)|\S*/aten/src/")
"""Where packages lie on this machine."""
HEADER: Row = ("family", "models", "captured", "coupled", "nothing held", "equal to masked", "works")


def side_by_side(findings: Sequence[Finding]) -> list[Row]:
    """Torch-Pruning's rates beside ours."""
    total = max(len(findings), 1)
    ours = {
        "graph": ("captured", sum(f.captured for f in findings)),
        "removal": ("removal runs", sum(f.stage in ("step", "done") for f in findings)),
        "complete": ("every couple found", sum(f.coupled and not held(f) for f in findings)),
        "passed": ("equal to the masked model", sum(f.passed for f in findings)),
    }
    return [(theirs, rate, ours[key][0], f"{ours[key][1] / total:.0%}") for key, theirs, rate in OTHER]


def failures(findings: Iterable[Finding]) -> list[Row]:
    """Every architecture that does not pass, with the stage and the message that its user reads."""
    return [
        (f.name, f.family, f.stage, _PLACE.sub("", f.message) or "no couples were found")
        for f in findings
        if not f.passed
    ]


def holders(findings: Iterable[Finding]) -> list[Row]:
    """Reasons that hold FFN, QK and VO axes, with the number of models and some of them."""
    models: dict[tuple[str, str], set[str]] = defaultdict(set)
    for finding in findings:
        for item in held(finding):
            models[item.reason, item.op].add(finding.name)
    ranked = sorted(models.items(), key=lambda e: (-len(e[1]), e[0]))
    return [(reason, op, str(len(found)), ", ".join(sorted(found)[:6])) for (reason, op), found in ranked]


def unknown(findings: Iterable[Finding]) -> list[Row]:
    """Operators without a rule, by the number of models that labels reach them in."""
    count = Counter(op for f in findings for op in f.unknown)
    return [(op, str(n)) for op, n in count.most_common()]


def table(rows: Sequence[Row], header: Row) -> str:
    """A Markdown table; long cells are cut."""
    lines = ["| " + " | ".join(r) + " |" for r in (header, tuple("---" for _ in header))]
    lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str, width: int = 300) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= width else text[: width - 1] + "…"


def page(findings: Sequence[Finding], environment: str) -> str:
    """The page in ``docs/``."""
    parts = [
        "# The zoo: every transformer there is",
        _INTRODUCTION.format(environment=environment, count=len(findings)),
        table(by_family(findings), HEADER),
        "## Beside a dependency-graph pruner",
        _COMPARISON.format(count=OTHER_MODELS),
        table(side_by_side(findings), ("Torch-Pruning 1.6.1", "rate", "ecospa_fx", "rate")),
        "## What does not pass",
        table(failures(findings), ("architecture", "family", "stage", "message")),
        "## What holds an axis that could go",
        "A weight axis that stays, and why. An unknown operator makes a couple smaller, never wrong.",
        table(holders(findings), ("reason", "operator", "models", "such as")),
        "## Operators without a rule",
        table(unknown(findings), ("operator", "models")),
    ]
    return "\n\n".join(parts) + "\n"


def summary(findings: Sequence[Finding]) -> str:
    """What the command prints."""
    parts = [
        table(by_family(findings), HEADER),
        table(side_by_side(findings), ("Torch-Pruning 1.6.1", "rate", "ecospa_fx", "rate")),
        table(failures(findings), ("architecture", "family", "stage", "message")),
        table(holders(findings)[:20], ("reason", "operator", "models", "such as")),
        table(unknown(findings)[:20], ("operator", "models")),
    ]
    return "\n\n".join(parts)


_INTRODUCTION = """\
`python -m benchmarks.zoo` builds a tiny random-weight model of every architecture of transformers whose
eager forward runs, and checks each ({count} here, {environment}):

- *captured*: the graph computes what the eager model does;
- *coupled*: couples were found; *nothing held*: no axis is frozen for a reason that its math does not give;
- *equal to masked*: half of the units of every couple removed at random, twice, with an optimizer step
  before, between and after; each time outputs and gradients equal those of the masked model in float64 (to
  1e-9 relative; 1e-4 where the model itself computes in float32);
- *works*: all of it."""

_COMPARISON = """\
The rates of Torch-Pruning were measured on random samples of the same models ({count}), with its recommended
settings plus a generic head heuristic, only FFN and heads pruned, endless groups retried at GQA ratio 4
(17 % without the heuristic; causal language models 61 %, MLA 0 of 5, SSM 0 of 4). Its "forward runs" asks for
no equality: removing one zeroed unit leaves the output unchanged for an FFN unit in 106 of 125 models, for a
V/O dim alone in 3 of 114, for a Q/K dim alone in 0 of 120."""

__all__ = ["Held", "by_family", "failures", "holders", "page", "side_by_side", "summary", "table", "unknown"]
