"""Hand-written blocks: every unit that their math allows, and removal equals masking."""

import pytest
import torch

import ecospa_fx
from ecospa_fx.testing import random_removal
from tests.models.attentions import ATTENTIONS
from tests.models.blocks import FEED_FORWARDS, VOCAB, Block, found_units
from tests.models.masked import MaskedModel, assert_same

BLOCKS = [
    *(pytest.param(block, id=f"attention-{name}") for name, block in ATTENTIONS.items()),
    *(pytest.param(block, id=f"feed-forward-{name}") for name, block in FEED_FORWARDS.items()),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_unit_is_found_and_removal_equals_masking(block: Block) -> None:
    model = block.build().eval()
    masked = MaskedModel(model)
    compiled = ecospa_fx.compile(model, args=(torch.randint(VOCAB, (2, 9)),))
    assert found_units(compiled) == dict(block.units)
    assert not compiled.analysis.unknown
    for number in range(2):
        compiled.apply(random_removal(compiled, 0.4, number))
        tokens = torch.randint(VOCAB, (5, 13))
        assert_same(compiled, masked, lambda net, call=tokens: net(call))
