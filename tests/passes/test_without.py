"""The dense graph in which experts that are gone are never picked."""

import copy

import torch

import ecospa_fx
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.without import without_experts
from ecospa_fx.testing import random_removal
from tests.models.routed import EXPERTS, WIDTH, Grouped, SoftmaxFirst


def test_there_is_none_while_all_experts_are_there() -> None:
    block = SoftmaxFirst().double()
    model = ecospa_fx.compile(block, args=(torch.randn(5, WIDTH).double(),))
    assert without_experts(model.analysis, dead_labels(model.analysis, model.removal), block) is None
    dead = dead_labels(model.analysis, random_removal(model, 0.4))  # hidden units alone
    assert without_experts(model.analysis, dead, block) is None


def test_it_is_the_eager_model_that_never_chooses_them() -> None:
    torch.manual_seed(0)
    block, x = Grouped().double(), torch.randn(23, WIDTH).double()
    model = ecospa_fx.compile(copy.deepcopy(block), args=(x,))
    removal = random_removal(model, 0.5, kinds=("expert",))
    run = without_experts(model.analysis, dead_labels(model.analysis, removal), block)
    block.lost = ~torch.from_numpy(removal.kept("up", 0, EXPERTS))
    assert run is not None
    assert block.lost.any()
    torch.testing.assert_close(run(dict(block.named_parameters()), [x]), block(x))
