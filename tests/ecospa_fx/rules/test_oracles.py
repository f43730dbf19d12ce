"""Every rule of the table, proved on its sample calls by the drop and the roll oracle."""

import pytest
import torch

from ecospa_fx.rules import TABLE
from ecospa_fx.testing import Sample, prove
from tests.ecospa_fx.rules import (
    samples_channels,
    samples_complexes,
    samples_contractions,
    samples_convolutions,
    samples_creation,
    samples_indexing,
    samples_layout,
    samples_losses,
    samples_matrices,
    samples_pointwise,
    samples_recurrent,
    samples_reductions,
    samples_spectra,
    samples_windows,
    samples_writes,
)

FAMILIES = (
    samples_channels,
    samples_complexes,
    samples_contractions,
    samples_convolutions,
    samples_creation,
    samples_indexing,
    samples_layout,
    samples_losses,
    samples_matrices,
    samples_pointwise,
    samples_recurrent,
    samples_reductions,
    samples_spectra,
    samples_windows,
    samples_writes,
)
SAMPLES: dict[str, tuple[Sample, ...]] = {k: v for family in FAMILIES for k, v in family.SAMPLES.items()}
GONE = {"aten.cholesky.default"}  # from newer releases of torch
TARGETS = sorted(r.target for r in TABLE)


def test_every_rule_has_samples_and_every_sample_a_rule() -> None:
    assert sum(len(family.SAMPLES) for family in FAMILIES) == len(SAMPLES), "an operator is listed twice"
    assert sorted(SAMPLES) == TARGETS


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # these three: torch 2.15 says what will change
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("target", TARGETS)
def test_rule_survives_drop_and_roll(target: str) -> None:
    namespace, packet, _ = target.split(".")
    if target in GONE and not hasattr(getattr(torch.ops, namespace), packet):
        pytest.skip("this torch has no such operator")
    prove(target, *SAMPLES[target])
