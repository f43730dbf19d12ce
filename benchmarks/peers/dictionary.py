"""Torch-Pruning's rows for the reverse dictionary: ``python -m benchmarks.peers.dictionary``.

Hidden units of feed-forward parts go, as many as make up the same number of parameters, by the library's own
scores. Needs ``torch-pruning==1.6.1``; see ``benchmarks/dictionary.py`` for glosses and evaluation.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from benchmarks.dictionary import contrast, finish, load, parser, split, top1
from benchmarks.peers.quality import RANKINGS, gradients, hidden_ratio, pruned

COUPLED = (r"layer.*(query|key|value|dense)", r"\d\.(intermediate|output)")
"""Patterns of what couples hold, and of what hidden units hold."""


def main() -> None:
    options, found = parser("benchmarks.peers.dictionary", __doc__).parse_args(), []
    measured, calibration = split(options)
    model = load()
    grads = gradients(model, calibration, contrast)
    example = {n: t[:1] for n, t in calibration[0].items()}
    for ratio, name in itertools.product(options.ratios, RANKINGS):
        row: dict[str, Any] = {"method": f"Torch-Pruning, {name}", "ratio": ratio}
        try:
            share = hidden_ratio(model, ratio, *COUPLED)
            smaller = pruned(
                model, grads, RANKINGS[name], share, ("intermediate.dense",), example_inputs=example,
                output_transform=lambda output: output.last_hidden_state,
            )  # fmt: skip
            params = sum(p.numel() for p in smaller.parameters())
            row |= {"params": params, "top1": top1(smaller, measured)}
        except Exception as error:
            row |= {"error": f"{type(error).__name__}: {error}"}
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    finish(found, "benchmarks.peers.dictionary", options.json)


if __name__ == "__main__":
    main()
