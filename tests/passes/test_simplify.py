"""Simplify: lookups by constant numbers, and einsum over many tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ecospa_fx
from ecospa_fx.passes.simplify import simplify
from ecospa_fx.testing import assert_equals_masked, random_removal
from tests.models.traced import graph_of


class Picked(nn.Module):
    """Queries, keys and values in one weight, of which ``part`` takes one."""

    def __init__(self, part: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.fused, self.out = nn.Linear(8, 3 * 12), nn.Linear(12, 8)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        parts = self.fused(x).unflatten(-1, (3, 3, 4))
        q, k, v = (self.part(parts, i).squeeze(2).transpose(1, 2) for i in range(3))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "part",
    [lambda t, i: t[:, :, [i - 3]], lambda t, i: t.index_select(2, torch.tensor([i]))],
    ids=["index", "select"],
)
def test_lookups_by_constants_are_slices(part: Callable[[Tensor, int], Tensor]) -> None:
    torch.manual_seed(0)
    model = Picked(part)
    compiled = ecospa_fx.compile(model, args=(torch.randn(2, 5, 8),))
    assert not any("index" in str(n.target) for n in compiled.analysis.program.graph.nodes)
    assert sorted(c.kind for c in compiled.couplings if c.kind != "residual") == ["qk"] * 3 + ["vo"] * 3
    assert_equals_masked(compiled, torch.randn(3, 7, 8))


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("order", torch.arange(12).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)[..., self.order].relu())


def test_a_lookup_by_a_buffer_stays() -> None:
    compiled = ecospa_fx.compile(Lookup(), args=(torch.randn(2, 5, 8),))
    assert any("index" in str(n.target) for n in compiled.analysis.program.graph.nodes)
    assert not compiled.couplings.of_kinds()


class Filled(nn.Module):
    """The first token's hidden units are filled with a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.up, self.down, self.number = nn.Linear(8, 12), nn.Linear(12, 8), number

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x) * 2
        hidden[:, 0] = self.number
        return self.down(hidden.relu())


@pytest.mark.parametrize("number", [0, 1.5])
def test_what_is_filled_with_a_number_keeps_its_units(number: float) -> None:
    compiled = ecospa_fx.compile(Filled(number), args=(torch.randn(2, 5, 8),))
    assert sum(c.num_units for c in compiled.couplings.of_kinds()) == 12
    assert not compiled.analysis.unknown
    assert_equals_masked(compiled, torch.randn(3, 7, 8))


class Chunks(nn.Module):
    """Scores within chunks that overlap by half."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.chunked(m(x)) for m in (self.q, self.k, self.v))
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)

    @staticmethod
    def padded(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 2))
        (batch, length, width), stride = x.size(), x.stride()
        return x.as_strided((batch, (length - 2) // 2, 4, width), (stride[0], 2 * stride[1], *stride[1:]))

    def chunked(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], x.shape[1] // 4, 4, x.shape[2])
        size, stride = list(x.size()), list(x.stride())
        return x.as_strided((size[0], 2 * size[1] - 1, *size[2:]), (stride[0], stride[1] // 2, *stride[2:]))


class Padded(Chunks):
    def chunked(self, x: Tensor) -> Tensor:
        return self.padded(x)


@pytest.mark.parametrize("kind", [Chunks, Padded])
def test_overlapping_chunks_are_windows(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(2, 12, 8)
    compiled = ecospa_fx.compile(model, args=(x,))
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert {c.kind: c.num_units for c in compiled.couplings} == {"qk": 8, "vo": 8}
    assert_equals_masked(compiled, torch.randn(3, 20, 8))


def test_other_strides_stay_and_leave_nothing_behind() -> None:
    graph = graph_of(lambda x: x.as_strided((2, 2, 4), (32, 16, 2)), torch.randn(2, 4, 8), ())
    before = str(graph)
    assert not simplify(graph, {})
    assert str(graph) == before


class Factors(nn.Module):
    """Scores by three factors, and values by an einsum of three more."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.bridge, self.out = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (3, 4)) for m in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,hde,bjhe->bhij", q, self.bridge, k).softmax(-1)
        return torch.einsum("bhij,bjhd,hdm->bim", scores, v, self.out)


def test_einsum_over_three_tensors() -> None:
    torch.manual_seed(0)
    model = Factors()
    x = torch.randn(2, 5, 8)
    compiled = ecospa_fx.compile(model, args=(x,))
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
    found = compiled.couplings.of_kinds()
    assert {w.parameter for c in found for w in c.weights} >= {
        "v.weight",
        "out",
        "q.weight",
        "bridge",
        "k.weight",
    }
    assert_equals_masked(compiled, torch.randn(3, 7, 8))


class Pictured(nn.Module):
    """Features of pictures take the places of marked tokens, in a stream that goes on."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens, self.project = nn.Embedding(11, 8), nn.Linear(6, 8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.mask = mask

    def forward(self, ids: Tensor, pictures: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x.masked_scatter(self.mask((ids == 0).unsqueeze(-1), x), self.project(pictures))
        return self.head(x + self.down(self.up(x).relu()))


WIDE = {
    "narrow": lambda m, x: m,
    "as": lambda m, x: m.expand_as(x).to(x.device),
    "sizes": lambda m, x: m.expand(-1, -1, 8).contiguous(),
    "repeat": lambda m, x: m.repeat(1, 1, 8),
}


@pytest.mark.parametrize("mask", WIDE.values(), ids=list(WIDE))
def test_a_mask_of_rows_carries_the_stream(mask: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[0, 3, 0, 7, 1], [5, 0, 0, 2, 9]])
    compiled = ecospa_fx.compile(Pictured(mask).double(), args=(ids, torch.randn(2, 3, 6).double()))
    stream = next(c for c in compiled.couplings if c.kind == "residual")
    assert {m.parameter for m in stream.weights} >= {"tokens.weight", "project.weight", "up.weight"}
    for seed in range(2):
        compiled.apply(random_removal(compiled, 0.4, seed, kinds=("residual", "ffn")))
        found = compiled.verify(torch.flip(ids, (1,)), torch.randn(1, 4, 6).double())
        assert found.within(1e-9), found


def test_a_mask_that_tells_features_apart_freezes() -> None:
    ids, pictures = torch.tensor([[0, 3, 0, 7, 1]]), torch.randn(1, 20, 6)
    model = Pictured(lambda m, x: m & (x > 0))
    frozen = ecospa_fx.compile(model, args=(ids, pictures)).couplings.frozen
    assert any("tell features apart" in f.reason.text for f in frozen if f.parameter == "project.weight")
