"""Persist: what is written under one name is read under every other, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from ecospa_fx.passes.normalise import normalise
from ecospa_fx.passes.persist import persist
from ecospa_fx.passes.unview import UnwritableError
from ecospa_fx.sizes import static
from tests.models.traced import exported, graph_of

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def a_part(x: Tensor) -> Any:
    y = x * 2
    y[:, 1:3] = x[:, :2].sin()
    return y, y.sum()


def an_older_name(x: Tensor) -> Any:
    y = x * 2
    first = y[:, 0]
    y.mul_(3)
    return first + y[:, 1]


def through_the_view(x: Tensor) -> Any:
    y = x * 2
    view = y.view(-1, 2, 3).transpose(1, 2).unsqueeze(0)[0]
    view[:, 0].add_(x[:, :2]).mul_(3)
    view.squeeze(0)[1] = 0.0
    return y * view.flatten(1)


def a_reshape_that_copies(x: Tensor) -> Any:
    y = x * 2
    copied = y.t().reshape(-1)
    copied.zero_()
    return y + copied.view(6, -1).t()


def row_by_row(x: Tensor) -> Any:
    y = x @ x.new_ones(6, 6)
    for i in range(1, 6):
        row = y[..., i:].clone()
        y[..., i:] = row + (row * y[..., :i].sum(-1, keepdim=True)).sin()
    return y


def pieces(x: Tensor) -> Any:
    y = (x * 2).detach()
    a, b = y.chunk(2, -1)
    c = y.unbind(1)[5]
    b.add_(1)
    c.fill_(7)
    return x[:, :3] * a + b, y


def without_gradients(x: Tensor) -> Any:
    with torch.no_grad():
        y = x.sin()
        y[:, 0] = 1.0
    y[:, 1] = x[:, 2]
    return x * y


def beside_a_detached_name(x: Tensor) -> Any:
    y = x.new_zeros(x.shape)
    z = y.detach()
    z.copy_(x * 3)
    return z, y * x


def of_another_type(x: Tensor) -> Any:
    y = torch.zeros(x.shape, dtype=torch.float32)
    y[:, :3] += x[:, :3]
    return y * x


def by_index(x: Tensor) -> Any:
    y = x * 2
    y.view(-1, 3)[:, 1:][y.view(-1, 3)[:, 1:] > 0.5] = 0.1
    y.diagonal(0, 0, 1).add_(x[0, 0])
    y.permute(1, 0).clamp_(max=1.0)
    return y


FOLLOWED = [a_part, an_older_name, through_the_view, a_reshape_that_copies, row_by_row, pieces,
            without_gradients, beside_a_detached_name, of_another_type, by_index]  # fmt: skip


@pytest.mark.parametrize("function", FOLLOWED)
def test_what_is_written_is_read(function: Callable[[Tensor], Any]) -> None:
    module = exported(function, X)
    graph = normalise(module)
    persist(graph)
    graph.eliminate_dead_code()
    graph.lint()
    targets = [n.target for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert not any(t._schema.is_mutable for t in targets)
    inputs = torch.cat([X, X.cos()]), X
    for x in inputs if function is not by_index else [X]:
        results = [_values_and_gradient(run, x) for run in (function, fx.GraphModule(module, graph))]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def _values_and_gradient(run: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    found = run(x)
    values = [found] if isinstance(found, Tensor) else list(found)
    total = torch.stack([v.square().sum() for v in values if v.requires_grad]).sum()
    return [*values, *torch.autograd.grad(total, x)]


def test_sizes_stay_free() -> None:
    graph = graph_of(row_by_row, X)
    persist(graph)
    sizes = [static(n.meta["val"].shape[0]) for n in graph.nodes if "scatter" in str(n.target)]
    assert sizes == [None] * 5


def test_numbers_of_places_promote_nothing() -> None:
    def marked(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :4].scatter_(1, x[:, :2].argsort(1), 1.0)
        return y * x

    graph = graph_of(marked, X)
    persist(graph)
    assert not [n for n in graph.nodes if n.target is torch.ops.aten.to.dtype]


def into_an_input(x: Tensor) -> Tensor:
    x.add_(1)
    return x


class IntoABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.memory[:3].add_(x[0, :3])
        return x * self.memory


def under_no_grad(x: Tensor) -> Tensor:
    y = x * 2
    with torch.no_grad():
        y[:, 0].mul_(3)
    return y


def through_a_diagonal_of_types(x: Tensor) -> Tensor:
    y = x * 2
    torch.view_as_complex(y.view(-1, 3, 2)).mul_(2)
    return y


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (into_an_input, "the graph has not made"),
        (IntoABuffer(), "the graph has not made"),
        (under_no_grad, "the graph has not made"),
        (through_a_diagonal_of_types, "no way back"),
    ],
)
def test_what_cannot_be_followed_is_told(function: Callable[..., Tensor], why: str) -> None:
    with pytest.raises(UnwritableError, match=why):
        persist(graph_of(function, X))
