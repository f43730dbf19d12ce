"""Torch-Pruning's rows for the reverse dictionary: ``python -m benchmarks.peers.dictionary``.

Hidden units of feed-forward parts go, as many as make up the same number of parameters, by the library's own
scores. Needs ``torch-pruning==1.6.1``; see ``benchmarks/dictionary.py`` for glosses and evaluation.
"""

from __future__ import annotations

from torch import nn

from benchmarks.dictionary import contrast, load, parser, split, top1
from benchmarks.peers.quality import RANKINGS, gradients, hidden_ratio, pruned, tried
from benchmarks.quality import finish

COUPLED = (r"layer.*(query|key|value|dense)", r"\d\.(intermediate|output)")
"""Patterns of what couples hold, and of what hidden units hold."""


def main() -> None:
    options = parser("benchmarks.peers.dictionary", __doc__).parse_args()
    measured, calibration = split(options)
    model = load()
    grads = gradients(model, calibration, contrast)
    example = {
        "example_inputs": {n: t[:1] for n, t in calibration[0].items()},
        "output_transform": lambda output: output.last_hidden_state,
    }

    def shrink(ranking: tuple[str, bool], ratio: float) -> nn.Module:
        share = hidden_ratio(model, ratio, *COUPLED)
        return pruned(model, grads, ranking, share, ("intermediate.dense",), **example)

    found = tried(options.ratios, RANKINGS, shrink, lambda smaller: [{"top1": top1(smaller, measured)}])
    finish(found, "benchmarks.peers.dictionary", options.json)


if __name__ == "__main__":
    main()
