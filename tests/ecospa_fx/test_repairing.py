"""Repair as a part of a removal: a transaction that reports, and errors before anything changes."""

import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx.change import prepare
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import EcoSpaError, InputError, RepairError
from ecospa_fx.repair import Repair

X = torch.randn(24, 6, dtype=torch.float64)
HOW = {"ratio": 0.3, "score": "magnitude", "allocation": "uniform"}


def compiled() -> CompiledModel:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)).double()
    return ecospa_fx.compile(model, args=(X,))


def values(model: CompiledModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_without_repair_survivors_keep_their_values() -> None:
    model = compiled()
    dense = values(model)
    report = model.sparsify(**HOW)
    assert report.repair is None
    assert report.to_dict()["repair"] is None
    for name, parameter in model.named_parameters():
        kept = dense[name][model.kept_mask(name)]
        assert torch.equal(parameter.flatten(), kept)


def test_with_repair_only_what_reads_removed_units_changes() -> None:
    model, plain = compiled(), compiled()
    plain.sparsify(**HOW)
    report = model.sparsify(**HOW, repair=[X])
    changed = {n for n, p in values(model).items() if not torch.equal(p, values(plain)[n])}
    assert changed == {"2.weight", "2.bias"}
    assert report.repair is not None
    assert not report.repair.deltas
    assert report.to_dict()["repair"]["fits"][0]["parameter"] == "2.weight"
    assert "1 weights repaired" in str(report)


def test_verify_compares_with_the_repaired_weights() -> None:
    model = compiled()
    model.sparsify(**HOW, repair=[X])
    assert model.verify(X).within(1e-9)


def test_the_optimizer_keeps_its_moments() -> None:
    model, plain = compiled(), compiled()
    states = []
    for one, repair in ((model, [X]), (plain, None)):
        optimizer = torch.optim.Adam(one.parameters())
        one(X).square().sum().backward()
        optimizer.step()
        one.sparsify(**HOW, optimizer=optimizer, repair=repair)
        states.append([optimizer.state[p]["exp_avg_sq"] for p in one.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_rolling_back_restores_every_bit() -> None:
    model = compiled()
    before, plan = values(model), model.plan(**HOW)
    change = prepare(model, plan.removal, (), model.repair(plan, [X]))
    change.commit()
    assert not torch.equal(model.state_dict()["2.bias"], before["2.bias"])
    change.rollback()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("repair", "error", "message"),
    [
        ([], RepairError, "there are no batches"),
        (iter([]), RepairError, "a generator can be read only once"),
        ([{"y": X}], InputError, "does not fit"),
    ],
)
def test_bad_batches_change_nothing(repair: object, error: type[EcoSpaError], message: str) -> None:
    model = compiled()
    before = values(model)
    with pytest.raises(error, match=message):
        model.sparsify(**HOW, repair=repair)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_repair_of_another_plan_is_refused() -> None:
    model = compiled()
    found = model.repair(model.plan(**HOW), [X])
    other = model.plan(ratio=0.5, score="magnitude", allocation="uniform")
    with pytest.raises(RepairError, match=r"does not fit '2\.weight'"):
        model.apply(other, repair=found)
    assert not model.removal.removed


def test_a_repair_may_be_applied_later() -> None:
    model, other = compiled(), compiled()
    plan = model.plan(**HOW)
    model.apply(plan, repair=model.repair(plan, [X]))
    other.sparsify(**HOW, repair=[X])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert isinstance(model.repair(plan, [X]), Repair)
