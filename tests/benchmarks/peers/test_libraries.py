"""What a user of each library writes; the other libraries only where they are installed."""

import pytest
import torch

from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.models import Shape, build, tokens


@pytest.mark.parametrize("library", ["ecospa-fx", "torch-pruning"])
@pytest.mark.parametrize("family", ["llama", "plain"])
def test_about_half_goes_and_the_rest_answers(library: str, family: str) -> None:
    pytest.importorskip(library.replace("-", "_"))
    shape = Shape(family, 1, 32, 48, 2, 2, 64)
    model, batch = build(shape), tokens(shape)
    before = sum(p.numel() for p in model.parameters())
    smaller = LIBRARIES[library][1](model, batch, shape)
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * before
    with torch.no_grad():
        smaller(batch)
