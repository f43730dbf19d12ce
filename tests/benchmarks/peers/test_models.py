"""The models that libraries are compared on."""

from dataclasses import replace

import pytest
import torch

from benchmarks.peers.models import SHAPES, Shape, build, logits, tokens

SMALL = Shape("", 1, 32, 48, 2, 2, 64)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt2-linear", "plain"])
def test_every_family_answers(family: str) -> None:
    shape = replace(SMALL, family=family)
    with torch.no_grad():
        assert logits(build(shape)(tokens(shape))).shape == (2, 16, 64)


def test_linear_layers_compute_what_conv1d_does() -> None:
    batch = tokens(SMALL)
    with torch.no_grad():
        first, second = (build(replace(SMALL, family=name))(batch).logits for name in ("gpt2", "gpt2-linear"))
    torch.testing.assert_close(first, second)


def test_sizes_are_those_of_the_names() -> None:
    millions = {"gpt2": 124, "llama-135m": 134, "llama-1b": 1100, "llama-7b": 6738, "llama-70b": 68976}
    for name, expected in millions.items():
        found = sum(p.numel() for p in build(SHAPES[name], "meta").parameters()) / 1e6
        assert found == pytest.approx(expected, rel=0.01)
