"""A change is checked, made and undone as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, PlanError
from ecospa_fx.change import prepare
from tests.models.snapshot import untouched


def stepped() -> tuple[CompiledModel, AdamW]:
    ffn = nn.Sequential(nn.Linear(10, 34), nn.GELU(), nn.Linear(34, 10)).double()
    compiled = ecospa_fx.compile(ffn, args=(torch.randn(5, 10, dtype=torch.float64),))
    optimizer = AdamW(compiled.parameters())
    compiled(torch.randn(5, 10, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    return compiled, optimizer


def test_what_is_prepared_is_not_made_yet() -> None:
    compiled, optimizer = stepped()
    with untouched(compiled, optimizer):
        change = prepare(compiled, compiled.plan(ratio=0.5).removal, [optimizer])
    change.commit()
    assert compiled.get_parameter("0.weight").shape == (17, 10)
    assert compiled.verify().within(1e-9)


def test_what_is_undone_is_as_it_was() -> None:
    compiled, optimizer = stepped()
    x = torch.randn(5, 10, dtype=torch.float64)
    before = compiled(x)
    with untouched(compiled, optimizer):
        change = prepare(compiled, compiled.plan(ratio=0.5).removal, [optimizer])
        change.commit()
        change.rollback()
    assert torch.equal(compiled(x), before)
    assert not compiled.removal.removed


def test_what_does_not_fit_is_refused() -> None:
    compiled, optimizer = stepped()
    removal = compiled.plan(ratio=0.5).removal
    compiled.sparsify(ratio=0.9, optimizer=optimizer)
    with untouched(compiled, optimizer), pytest.raises(PlanError, match="gone already"):
        prepare(compiled, removal, [optimizer])
