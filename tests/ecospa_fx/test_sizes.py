"""Sizes: shapes with symbols are compared without a guard."""

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from ecospa_fx.sizes import hint, same_sizes, supposed


class Halved(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x + 1, x.mT, x[..., :2]


def test_shapes_are_alike_where_they_are_written_alike() -> None:
    program = export(Halved(), (torch.randn(5, 5, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    nodes = [n for n in program.graph.nodes if n.op != "output"]
    shape, same, turned, cut = (n.meta["val"].shape for n in nodes)
    assert same_sizes(shape, same)
    assert not same_sizes(shape, turned)
    assert not same_sizes(shape, cut)
    assert not same_sizes(shape, shape[1:])


class Picked(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = x[x.sum(-1) > 0]
        return found, torch.cat([found, found]), torch.cat([found, x])


def test_a_number_that_depends_on_data_is_supposed_alike_everywhere() -> None:
    program = export(Picked(), (torch.randn(5, 4),), dynamic_shapes=({0: Dim.AUTO},))
    sizes = [n.meta["val"].shape[0] for n in program.graph.output_node().args[0]]
    assert {hint(size) for size in sizes} == {hint(sizes[0])}
    one, two, more = map(supposed, sizes)
    assert two == 2 * one
    assert more == one + 5
