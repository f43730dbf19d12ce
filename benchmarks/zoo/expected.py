"""Which frozen axes an architecture's math would let go."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.zoo.examine import Finding

# Reasons that no rule can lift: what is left would not compute what the masked model does.
GIVEN = (
    "softmax runs along this axis",
    "ordered, accumulated or compared along this axis",
    "the router picks experts by number",
    "looked up or written by number",
    "one index of this axis is selected by number",
    "normalised, but not zero where removed",
    "normalised along this axis",
    "is summed over, but does not vanish where removed",
    "its norm would become zero",
    "mixed by a window of positions",
    "the model returns this axis",
    "rows of an embedding are looked up by number",
    "a convolution's window",
    "one index of an axis stands alone",
    "looked up by coordinates",
    "used as coordinates",
    "mixed by a Fourier transform",
    "added by padding",
    "a piece without labels is concatenated here",
    "a matrix is solved or decomposed as a whole",
    "no second weight depends on it",
    "meets an activation without labels on this axis",
)


@dataclass(frozen=True)
class Held:
    """A weight axis that stays for want of a rule."""

    parameter: str
    axis: int
    reason: str
    op: str
    source: str


def held(finding: Finding) -> list[Held]:
    """The frozen axes of ``finding`` whose reason its math does not give."""
    return [Held(*entry) for entry in finding.frozen if entry[2] not in GIVEN]
