"""Repairs of small models: against least squares by hand, and what has to stay as it is."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import RepairError
from ecospa_fx.plan import Plan
from ecospa_fx.repair import Repair
from ecospa_fx.scores import ScoreContext
from tests.models.families import build

X = torch.randn(32, 5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Block(nn.Module):
    """A residual MLP, with a bias on its consumer or without."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6, bias=bias)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.up(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.hidden(x))


class Twice(nn.Module):
    """One block, read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def planned(model: nn.Module, ratio: float = 0.3) -> tuple[CompiledModel, Plan]:
    compiled = ecospa_fx.compile(model.double(), args=(X,))
    return compiled, compiled.plan(ratio=ratio, score="magnitude", allocation="uniform")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().sum().detach())


def damped(rows: torch.Tensor, left: torch.Tensor, damping: float) -> torch.Tensor:
    extra = torch.diag((damping * rows.square().sum(0)).sqrt())
    system = torch.cat([rows, extra]), torch.cat([left, torch.zeros(len(extra), 6, dtype=left.dtype)])
    return torch.linalg.lstsq(*system).solution


def by_hand(block: Block, kept: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of weight and bias, from rows."""
    x, target = block.hidden(X).flatten(0, 1), block.down(block.hidden(X)).flatten(0, 1)
    left = target - F.linear(x[:, kept], block.down.weight[:, kept], block.down.bias)
    mean_x, mean_r = x[:, kept].mean(0), left.mean(0)
    if block.down.bias is None:
        mean_x, mean_r = 0 * mean_x, 0 * mean_r
    change = damped(x[:, kept] - mean_x, left - mean_r, damping)
    return change.T.detach(), (mean_r - mean_x @ change).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_and_its_bias_by_hand(bias: bool) -> None:
    block = Block(bias)
    compiled, plan = planned(block)
    kept = torch.from_numpy(plan.removal.kept("down.weight", 1, 24))
    found = compiled.repair(plan, [X[:16], X[16:]])
    (fit,) = found.fits
    assert fit.damping is not None
    change, offset = by_hand(block, kept, fit.damping)
    torch.testing.assert_close(found.deltas["down.weight"], change)
    assert ("down.bias" in found.deltas) == bias
    if bias:
        torch.testing.assert_close(found.deltas["down.bias"], offset)
    assert (fit.parameter, fit.bias) == ("down.weight", "down.bias" if bias else None)
    assert (fit.tokens, fit.lost) == (160, int((~kept).sum()))


def test_planning_a_repair_changes_nothing() -> None:
    compiled, plan = planned(Stack())
    before = {n: p.detach().clone() for n, p in compiled.named_parameters()}
    modes = [m.training for m in compiled.modules()]
    compiled.repair(plan, [X])
    assert all(torch.equal(p, before[n]) for n, p in compiled.named_parameters())
    assert [m.training for m in compiled.modules()] == modes
    assert not compiled.removal.removed


def test_the_outputs_come_closer_on_other_data() -> None:
    model = Stack()
    compiled, plan = planned(model, 0.5)
    other = torch.randn(16, 5, 6, dtype=torch.float64)
    dense = model(other)
    found = compiled.repair(plan, [X])
    compiled.apply(plan)
    alone = distance(compiled(other), dense)
    found.apply(dict(compiled.named_parameters()))
    assert distance(compiled(other), dense) < 0.5 * alone


def test_each_weight_sees_what_those_before_it_leave() -> None:
    """With the first block repaired by hand, the rest is what a repair of the rest alone finds."""
    model = Stack()
    compiled, plan = planned(model)
    found = compiled.repair(plan, [X])
    compiled.apply(plan, repair=found)
    x = X
    for block, removed in zip(model.blocks, found.fits, strict=True):
        assert removed.parameter.endswith("down.weight")
        x = block(x)
    torch.testing.assert_close(compiled(X), x)


def rows_of(block: Block, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return block.hidden(x).flatten(0, 1)[:, kept].detach()


def test_what_stands_before_a_sum_makes_up_for_all_before_it() -> None:
    """The second block of two is fitted to the dense sum, from what the first one has left."""
    torch.manual_seed(2)
    model = nn.Sequential(Block(False), Block(False)).double()
    compiled, plan = planned(model, 0.5)
    found = compiled.repair(plan, [X])
    dense, second = model(X).flatten(0, 1).detach(), copy.deepcopy(model[1])
    compiled.apply(plan, repair=Repair({"0.down.weight": found.deltas["0.down.weight"]}))
    x = model[0](X)
    kept = torch.from_numpy(plan.removal.kept("1.down.weight", 1, 24))
    rows = rows_of(second, x, kept)
    left = dense - x.flatten(0, 1).detach() - rows @ model[1].down.weight.detach().T
    expected = damped(rows, left, found.fits[1].damping or 0.0)
    torch.testing.assert_close(found.deltas["1.down.weight"], expected.T)


def test_without_a_sum_there_is_nothing_else_to_fit() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    compiled, plan = planned(model)
    plain = compiled.repair(plan, [X], target="product")
    other = compiled.repair(plan, [X], target="sum", every=True)
    assert all(torch.equal(d, other.deltas[n]) for n, d in plain.deltas.items())


def test_weights_that_lose_nothing_make_up_for_what_comes_before_them() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(*(Block(False) for _ in range(3))).double()
    compiled = ecospa_fx.compile(model, args=(X,))
    plan = compiled.plan(ratio=0.1, score=block_one_first, allocation="global")
    assert all(name.startswith("1.") for name in plan.removal.removed)
    found = compiled.repair(plan, [X], every=True)
    assert {fit.parameter: fit.lost > 0 for fit in found.fits} == {
        "1.down.weight": True,
        "2.down.weight": False,
    }
    assert not found.skipped
    dense = model(X).detach()
    alone = compiled.repair(plan, [X])
    errors = []
    for repair in (alone, found):
        twin = copy.deepcopy(compiled)
        twin.apply(plan, repair=repair)
        errors.append(distance(twin(X), dense))
        assert twin.verify(X).within(1e-9)
    assert errors[1] < errors[0]


def block_one_first(context: ScoreContext) -> np.ndarray:
    """Scores by which only the second block loses units."""
    scores = np.ones(context.size)
    axis = next(a for a in context.graph.axes if a.parameter == "1.down.weight" and a.role == "in")
    scores[axis.components] = np.linspace(0, 1e-3, len(axis.components))
    return scores


def test_an_unknown_target_is_refused() -> None:
    compiled, plan = planned(Block())
    with pytest.raises(RepairError, match="'product' or 'sum'"):
        compiled.repair(plan, [X], target="output")


@pytest.mark.parametrize("settings", [{}, {"target": "sum", "every": True}])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_attention_and_feed_forward_of_transformers(name: str, settings: dict[str, Any]) -> None:
    model = build(name).model
    tokens = [torch.randint(0, 40, (4, 12)) for _ in range(4)]
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": tokens[0]})
    plan = compiled.plan(ratio=0.3, score="magnitude", allocation="uniform")
    found = compiled.repair(plan, [{"input_ids": t} for t in tokens], **settings)
    axes = [a for a in compiled.couplings.axes if a.role == "in" and a.weight]
    lost = {a.parameter for a in axes if a.axis in plan.removal.removed.get(a.parameter, {})}
    assert {fit.parameter for fit in found.fits} == lost
    assert len(lost) == 4
    assert not found.skipped
    compiled.apply(plan, repair=found)
    assert compiled.verify(input_ids=tokens[0]).within(1e-9)


def test_a_weight_that_is_read_twice_stays() -> None:
    compiled, plan = planned(Twice())
    found = compiled.repair(plan, [X])
    assert not found.deltas
    assert found.skipped == {"block.down.weight": "it is read in more than one place"}


def test_a_convolution_stays() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 3))
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    compiled = ecospa_fx.compile(model.double(), args=(x,))
    plan = compiled.plan(ratio=0.3, score="magnitude", allocation="uniform")
    found = compiled.repair(plan, [x])
    assert found.skipped == {"2.weight": "it is a stack of matrices or a convolution"}


def test_a_second_round_starts_from_what_is_left() -> None:
    compiled, plan = planned(Stack())
    compiled.apply(plan, repair=compiled.repair(plan, [X]))
    halfway = compiled(X)
    report = compiled.sparsify(ratio=0.3, score="magnitude", allocation="uniform", repair=[X])
    assert isinstance(report.repair, Repair)
    assert len(report.repair.fits) == 3
    assert compiled.verify().within(1e-9)
    assert distance(compiled(X), halfway) < distance(torch.zeros_like(halfway), halfway)


def test_batches_of_another_size_are_another_graph() -> None:
    compiled, plan = planned(Block())
    one, both = (compiled.repair(plan, batches) for batches in ([X], [X[:31], X[31:]]))
    assert one.fits[0].tokens == both.fits[0].tokens == 160


def test_training_mode_is_kept_and_dropout_plays_no_part() -> None:
    block = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.GELU(), nn.Linear(12, 6)).train()
    compiled, plan = planned(block)
    first, second = (compiled.repair(plan, [X]) for _ in range(2))
    assert compiled.training
    assert all(torch.equal(d, second.deltas[n]) for n, d in first.deltas.items())


class Heads(nn.Module):
    """Three heads of four dims, whose values are mixed over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))
        self.o = nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def first_heads_first(context: ScoreContext) -> np.ndarray:
    """Scores by which the first head loses all that it can before the others."""
    return np.arange(context.size, dtype=np.float64)


def test_ragged_heads_stay_with_the_reason() -> None:
    compiled = ecospa_fx.compile(Heads().double(), args=(X,))
    how = {"score": first_heads_first, "allocation": "global", "kinds": ("vo",), "heads": "ragged"}
    plan = compiled.plan(ratio=0.25, **how)
    found = compiled.repair(plan, [X])
    assert not found.deltas
    assert "heads keep different counts" in found.skipped["o.weight"]
    compiled.apply(plan, repair=found)
    assert compiled.verify().within(1e-9)


def test_experts_stay_and_attention_is_repaired() -> None:
    made = build("mixtral")
    inputs = [made.inputs(2, 7) for _ in range(2)]
    compiled = ecospa_fx.compile(made.model, kwargs=inputs[0])
    plan = compiled.plan(ratio=0.3, score="magnitude", allocation="uniform")
    found = compiled.repair(plan, inputs)
    assert {fit.parameter.split(".")[-2] for fit in found.fits} == {"o_proj"}
    assert any("stack of matrices" in reason for reason in found.skipped.values())
