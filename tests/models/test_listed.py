"""Experts that are modules: hidden units go from each by itself; whole experts stay, with a reason."""

from __future__ import annotations

import pytest
import torch

import ecospa_fx
from ecospa_fx.testing import assert_equals_masked
from tests.models.listed import EXPERTS, HIDDEN, WIDTH, Compared, Listed, OneHot, Repeated, Soft, Summed

X = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPELLINGS = [OneHot, Compared, Repeated, Summed, Soft]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_expert_loses_hidden_units_of_its_own(spelling: type[Listed]) -> None:
    compiled = ecospa_fx.compile(spelling().double(), args=(X,))
    found = {c.name: (c.kind, c.num_units) for c in compiled.couplings}
    assert list(found.values()) == [("ffn", HIDDEN)] * EXPERTS
    assert_equals_masked(compiled, torch.randn(2, 5, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_expert_that_no_token_takes(spelling: type[Listed]) -> None:
    """All tokens alike: two experts get them all, the others get none."""
    compiled = ecospa_fx.compile(spelling().double(), args=(X,))
    assert_equals_masked(compiled, X[:1, :1].expand(2, 4, -1).contiguous())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_whole_experts_stay_with_a_reason(spelling: type[Listed]) -> None:
    compiled = ecospa_fx.compile(spelling().double(), args=(X,))
    grads = {name: torch.ones_like(p) for name, p in compiled.named_parameters()}
    with pytest.raises(
        ecospa_fx.EcoSpaError, match=r"no couples of kind expert[^$]*router.weight axis 0: softmax"
    ):
        compiled.sparsify(grads, 0.3, kinds=("expert",))
