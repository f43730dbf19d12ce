"""Which frozen axes an architecture's math would let go."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.zoo.examine import Finding

# Reasons that no rule can lift.
GIVEN = (
    "the model returns this axis",
    "rows of an embedding are looked up by number",
    "a convolution's window",
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
