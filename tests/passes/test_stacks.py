"""Which parameters are stacks of matrices that can each lose indices of their own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ecospa_fx.passes.analyse import analyse
from ecospa_fx.passes.couple import couple
from ecospa_fx.passes.propagate import propagate
from ecospa_fx.passes.stacks import in_vain, stacked_axes
from ecospa_fx.stacks import Stack
from tests.models.tiny import Function, program

SHAPES = {
    "u": (3, 9, 6),
    "d": (3, 6, 9),
    "b": (3, 9),
    "c": (9,),
    "o": (6, 9),
    "w": (9, 6, 1),
    "z": (3, 1, 9),
    "v": (6, 3, 9),
    "y": (9, 3, 6),
    "n": (9, 6),
}


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


def heads_behind(m: object, x: Tensor) -> Tensor:
    """The second matrices hold heads behind the hidden units."""
    return torch.einsum("btei,ied->btd", torch.einsum("btd,dei->btei", x, m.v).relu(), m.y)


CASES = {
    "experts": (experts, {"u": (0, 1), "b": (0, 1), "d": (0, 2)}),
    "a bias with an axis for tokens": (tokens_inside, {"u": (0, 1), "z": (0, 2), "d": (0, 2)}),
    "a scale that all share": (one_scale, {"u": (0, 1), "d": (0, 2)}),
    "one output": (one_output, {"u": (0, 1)}),
    "summed first": (summed_first, {}),
    "convolution": (convolution, {}),
}


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_stacked_axes(function: Function, expected: dict[str, tuple[int, int]]) -> None:
    graph, analysis = couple(propagate(program(function, **SHAPES)))
    assert stacked_axes(analysis, graph) == expected


def sums_of_heads(m: object, x: Tensor) -> Tensor:
    """All matrices along axis 1 meet the same second matrix."""
    return torch.einsum("bti,id->btd", torch.einsum("btd,dei->btei", x, m.v).relu().sum(2), m.n)


VAIN = {
    "matrices of their own": (experts, {"u": (0, 1), "d": (0, 2), "b": (0, 1)}, set()),
    "matrices that agree": (sums_of_heads, {"v": (1, 2)}, {"v"}),
    "a partner without labels of its own": (heads_behind, {"v": (1, 2)}, {"v"}),
}


@pytest.mark.parametrize(("function", "tried", "expected"), VAIN.values(), ids=VAIN)
def test_in_vain(function: Function, tried: dict[str, tuple[int, int]], expected: set[str]) -> None:
    traced = program(function, **SHAPES)
    graph, analysis = couple(propagate(traced))
    stacked = {name: Stack(*axes) for name, axes in tried.items()}
    assert in_vain(analysis, graph, stacked, couple(propagate(traced, stacked))) == expected


def test_a_stack_has_a_couple_for_each_matrix() -> None:
    found = analyse(program(experts, **SHAPES))
    couples = [c for c in found[0].couples if c.kind == "ffn"]
    assert [(c.head, c.num_units) for c in couples] == [(0, 9), (1, 9), (2, 9)]
