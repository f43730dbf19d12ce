"""The oracles notice a compiler that was broken on purpose, and only then."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

import ecospa_fx
from benchmarks.mutations import MUTATIONS
from ecospa_fx.errors import RewriteError, VerifyError
from ecospa_fx.testing import prove, random_removal
from tests.ecospa_fx.rules.test_oracles import SAMPLES
from tests.models.attentions import ATTENTIONS
from tests.models.blocks import VOCAB, Block, assert_removable
from tests.models.masked import MaskedModel, assert_close, loss_of


def proved(target: str) -> None:
    prove(target, *SAMPLES[target])


def steps_equal(block: Block) -> None:
    """Steps after a removal equal masked steps."""
    model = block.build()
    masked = MaskedModel(model)
    compiled = ecospa_fx.compile(model, args=(torch.randint(VOCAB, (2, 9)),))
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2, eps=1e-5)
    other = torch.optim.AdamW(masked.parameters.values(), lr=1e-2, eps=1e-5)
    for seed in range(3):
        tokens = torch.randint(VOCAB, (2, 9))
        for net, opt in ((compiled, optimizer), (masked, other)):
            opt.zero_grad()
            loss_of(net(tokens)).backward()
            opt.step()
        if seed == 0:
            compiled.apply(random_removal(compiled, 0.4), optimizer)
            masked.follow(compiled)
    small = dict(compiled.named_parameters())
    expected = masked.survivors(masked.parameters, small)
    for name, p in small.items():
        assert_close(p, expected[name], 1e-9, name)


CAUGHT: dict[str, Callable[[], None]] = {
    "sdpa-scale": partial(proved, "aten.scaled_dot_product_attention.default"),
    "gqa-interleave": partial(proved, "aten.repeat_interleave.self_int"),
    "sigmoid-zero": partial(proved, "aten.sigmoid.default"),
    "softmax-free": partial(proved, "aten.softmax.int"),
    "rms-norm-size": partial(proved, "aten.rms_norm.default"),
    "rope-partner": partial(assert_removable, ATTENTIONS["rotary"]),
    "kept-mask": partial(assert_removable, ATTENTIONS["grouping"]),
    "moments": partial(steps_equal, ATTENTIONS["grouping"]),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_oracle_notices(name: str) -> None:
    CAUGHT[name]()
    with MUTATIONS[name].install(), pytest.raises((VerifyError, RewriteError, AssertionError)):
        CAUGHT[name]()
    CAUGHT[name]()
