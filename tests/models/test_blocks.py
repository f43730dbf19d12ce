"""Hand-written blocks: every unit that their math allows, and removal equals masking."""

import pytest

from tests.models.attentions import ATTENTIONS
from tests.models.blocks import FEED_FORWARDS, Block, assert_removable

BLOCKS = [
    *(pytest.param(block, id=f"attention-{name}") for name, block in ATTENTIONS.items()),
    *(pytest.param(block, id=f"feed-forward-{name}") for name, block in FEED_FORWARDS.items()),
]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_unit_is_found_and_removal_equals_masking(block: Block) -> None:
    assert_removable(block)
