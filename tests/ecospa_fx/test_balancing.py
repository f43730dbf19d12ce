"""A balanced basis: the same function, fewer units that matter, and what may not be mixed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.errors import RepairError
from tests.models.families import build

X = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Attention(nn.Module):
    """Four query heads over two key heads, with something on the way of the values."""

    def __init__(self, way: str = "plain", bias: bool = True) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(12, 16, bias=bias), nn.Linear(16, 12, bias=bias)
        self.k, self.v = nn.Linear(12, 8, bias=bias), nn.Linear(12, 8, bias=bias)
        self.norm, self.scale, self.way = nn.LayerNorm(4), nn.Parameter(torch.rand(4)), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        ways = {
            "plain": lambda: v,
            "tanh": lambda: v.tanh(),
            "norm": lambda: self.norm(v),
            "scaled": lambda: v * self.scale,
            "rolled": lambda: v.roll(1, -1),
            "cut": lambda: torch.cat([v[..., 2:], v[..., :2]], -1),
        }
        y = F.scaled_dot_product_attention(q, k, ways[self.way](), enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(-2))


def compiled(model: nn.Module) -> ecospa_fx.CompiledModel:
    return ecospa_fx.compile(model.double(), args=(X,))


@pytest.mark.parametrize("bias", [True, False])
def test_the_function_stays(bias: bool) -> None:
    torch.manual_seed(0)
    model = compiled(Attention(bias=bias))
    before, weight = model(X).detach(), model.source.v.weight.detach().clone()
    found = model.balance([X])
    assert len(found.turned) == 2
    assert not found.left
    assert not found.values
    assert not torch.allclose(model.source.v.weight, weight)
    torch.testing.assert_close(model(X), before, rtol=1e-9, atol=1e-9)
    assert "2 couples" in str(found)


def test_both_moments_are_the_same_diagonal() -> None:
    torch.manual_seed(0)
    model = compiled(Attention(bias=False))
    model.balance([X])
    seen: list[torch.Tensor] = []
    hook = model.source.o.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.source(X)
    hook.remove()
    heads = seen[0].flatten(0, 1).unflatten(-1, (2, 2, 4)).detach()
    weight = model.source.o.weight.unflatten(-1, (2, 2, 4)).detach()
    for group in range(2):
        moments = torch.einsum("nhi,nhj->ij", heads[:, group], heads[:, group])
        readers = torch.einsum("ohi,ohj->ij", weight[:, group], weight[:, group])
        torch.testing.assert_close(moments, readers, rtol=1e-4, atol=1e-4 * float(moments.max()))
        off = moments - moments.diagonal().diag()
        assert off.abs().max() < 1e-4 * moments.max()
        assert (moments.diagonal().diff() <= 0).all()


def test_units_that_are_mixtures_of_others_cost_nothing() -> None:
    """Values of rank two in a width of four: half of them may go."""
    torch.manual_seed(0)
    block = Attention(bias=False)
    with torch.no_grad():
        heads = block.v.weight.view(2, 4, 12)
        heads.copy_(torch.randn(2, 4, 2) @ torch.randn(2, 2, 12))
    model = compiled(block)
    dense = model(X).detach()
    plain = copy.deepcopy(model)
    model.balance([X])
    errors = []
    for one in (plain, model):
        one.sparsify(ratio={"vo": 0.5}, score="activation", allocation="uniform", calibration=[X])
        assert one.verify(X).within(1e-9)
        errors.append(float((one(X) - dense).detach().norm() / dense.norm()))
    assert errors[1] < 1e-4 < 0.05 < errors[0]


@pytest.mark.parametrize("way", ["tanh", "norm", "scaled", "rolled", "cut"])
def test_what_stands_in_the_way_keeps_the_basis(way: str) -> None:
    torch.manual_seed(0)
    model = compiled(Attention(way))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = model.balance([X])
    assert not found.turned
    values = [c.name for c in model.couplings.couples if c.kind == "vo"]
    assert set(values) == set(found.left)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert", "t5"])
def test_transformers_compute_the_same(name: str) -> None:
    made = build(name)
    inputs = [made.inputs(2, 9) for _ in range(2)]
    model = ecospa_fx.compile(made.model, kwargs=inputs[0])
    before = model(**inputs[1])
    found = model.balance(inputs)
    assert {c.name for c in model.couplings.couples if c.kind == "vo"} == set(found.turned)
    after = model(**inputs[1])
    torch.testing.assert_close(after[0], before[0], rtol=1e-7, atol=1e-7)
    model.sparsify(ratio=0.3, score="magnitude", allocation="uniform")
    assert model.verify(**inputs[0]).within(1e-9)


def test_after_a_removal_it_is_too_late() -> None:
    model = compiled(Attention())
    model.sparsify(ratio=0.3, score="magnitude", allocation="uniform")
    with pytest.raises(RepairError, match="before the first removal"):
        model.balance([X])


def test_without_batches_it_says_so() -> None:
    with pytest.raises(RepairError, match="no batches"):
        compiled(Attention()).balance([])
