"""Which parameters are stacks of matrices that can each lose indices of their own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ecospa_fx.passes.analyse import analyse
from ecospa_fx.passes.couple import couple
from ecospa_fx.passes.propagate import propagate
from ecospa_fx.passes.stacks import stacked_axes
from tests.models.tiny import Function, program

SHAPES = {"u": (3, 9, 6), "d": (3, 6, 9), "b": (3, 9), "c": (9,), "o": (6, 9), "w": (9, 6, 1), "z": (3, 1, 9)}


def experts(m: object, x: Tensor) -> Tensor:
    h = torch.einsum("btd,eid->btei", x, m.u) + m.b
    return torch.einsum("btei,edi->btd", h.relu(), m.d)


def tokens_inside(m: object, x: Tensor) -> Tensor:
    h = torch.einsum("btd,eid->beti", x, m.u) + m.z
    return torch.einsum("beti,edi->btd", h.relu(), m.d)


def one_scale(m: object, x: Tensor) -> Tensor:
    h = torch.einsum("btd,eid->btei", x, m.u).relu() * m.c
    return torch.einsum("btei,edi->btd", h, m.d)


def one_output(m: object, x: Tensor) -> Tensor:
    """The second matrix is the same for all, which then agree."""
    return F.linear(torch.einsum("btd,eid->btei", x, m.u).relu(), m.o).sum(2)


def summed_first(m: object, x: Tensor) -> Tensor:
    """The stack's axis is summed over before the hidden one is used."""
    return F.linear(torch.einsum("btd,eid->bti", x, m.u).relu(), m.o)


def convolution(m: object, x: Tensor) -> Tensor:
    return F.linear(F.conv1d(x.transpose(1, 2), m.w).transpose(1, 2).relu(), m.o)


CASES = {
    "experts": (experts, {"u": 1, "b": 1, "d": 2}),
    "a bias with an axis for tokens": (tokens_inside, {"u": 1, "z": 2, "d": 2}),
    "a scale that all share": (one_scale, {"u": 1, "d": 2}),
    "one output": (one_output, {"u": 1}),
    "summed first": (summed_first, {}),
    "convolution": (convolution, {}),
}


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_stacked_axes(function: Function, expected: dict[str, int]) -> None:
    graph, analysis = couple(propagate(program(function, **SHAPES)))
    assert stacked_axes(analysis, graph) == expected


def test_a_stack_has_a_couple_for_each_matrix() -> None:
    found = analyse(program(experts, **SHAPES))
    couples = [c for c in found[0].couples if c.kind == "ffn"]
    assert [(c.head, c.num_units) for c in couples] == [(0, 9), (1, 9), (2, 9)]
