"""Well-known families: every unit that their arithmetic promises, and removal equals masking."""

import pytest
from torch import Tensor
from torch.optim import AdamW

pytest.importorskip("transformers")

import ecospa_fx
from ecospa_fx.testing import random_removal
from tests.models.blocks import found_units
from tests.models.families import FAMILIES, build
from tests.models.masked import MaskedModel, assert_same, loss_of


def adamw(parameters: object) -> AdamW:
    """With an epsilon far above the round-off of a gradient that is zero, such as a key bias's."""
    return AdamW(parameters, lr=1e-2, weight_decay=0.1, eps=1e-3)  # type: ignore[arg-type]


def step(model: object, optimizer: AdamW, inputs: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    loss_of(model(**inputs)).backward()  # type: ignore[operator]
    optimizer.step()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_unit_is_found_and_removal_equals_masking(name: str) -> None:
    family = build(name)
    masked = MaskedModel(family.model)
    compiled = ecospa_fx.compile(family.model, kwargs=family.inputs(2, 9))
    assert found_units(compiled) == dict(family.units)
    assert not compiled.analysis.unknown

    optimizer, other = adamw(compiled.parameters()), adamw(masked.parameters.values())
    for number in range(2):
        trained = family.inputs(2, 9)
        step(compiled, optimizer, trained)
        step(masked, other, trained)
        compiled.apply(random_removal(compiled, 0.5, number), optimizer)
        unseen = family.inputs(3, 13)
        assert_same(compiled, masked, lambda model, call=unseen: model(**call), family.tolerance)
