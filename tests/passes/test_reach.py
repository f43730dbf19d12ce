"""Reach: where a schedule begins and ends, found before anything goes."""

from __future__ import annotations

import pytest

from ecospa_fx import CompiledModel, CoupleError, PlanError
from ecospa_fx.passes.reach import reach, shares
from ecospa_fx.plan import PlanSettings
from ecospa_fx.target import WHOLE, Aim, Target
from tests.models.snapshot import untouched
from tests.models.training import DENSE, UNIT, batches, ffn, loss_of


def found(model: CompiledModel, target: Target, outside: int = 0, **settings: object) -> dict[str, Aim]:
    chosen = PlanSettings.of({"kinds": target.kinds(("qk", "vo", "ffn")), **settings})
    with untouched(model):
        return reach(model.couplings, model.analysis.partition, model.removal, target, chosen, outside)


def test_a_ratio_counts_what_couples_hold() -> None:
    model = ffn()
    assert found(model, Target(0.5)) == {WHOLE: Aim(DENSE, DENSE - 17 * UNIT)}
    assert found(model, Target(0.5), outside=7)[WHOLE] == Aim(DENSE + 7, DENSE + 7 - 17 * UNIT)
    assert found(model, Target({"ffn": 0.5})) == {"ffn": Aim(34 * UNIT, 17 * UNIT)}
    assert found(model, Target(params=500)) == {WHOLE: Aim(DENSE, 500)}


def test_it_counts_from_the_dense_model() -> None:
    model = ffn()
    loss_of(model, next(batches())).backward()
    model.sparsify(target_params=DENSE - 10 * UNIT)
    assert found(model, Target(0.5)) == {WHOLE: Aim(DENSE - 10 * UNIT, DENSE - 17 * UNIT)}
    assert found(model, Target({"ffn": 0.5})) == {"ffn": Aim(24 * UNIT, 17 * UNIT)}
    assert found(model, Target({"ffn": 0.1}))["ffn"].final > 24 * UNIT  # reached already


def test_what_is_out_of_reach() -> None:
    model = ffn()
    for target in (Target(0.99), Target(params=20), Target({"ffn": 0.99})):
        with pytest.raises(PlanError, match="out of reach"):
            found(model, target)
    with pytest.raises(PlanError, match="no couples of kind 'qk'; there are ffn"):
        found(model, Target({"qk": 0.1}))
    with pytest.raises(CoupleError, match="no couples of kind qk"):
        found(model, Target(0.1), kinds=("qk",))


def test_shares_of_what_is_there() -> None:
    assert shares({"ffn": (200, 50), "vo": (0, 0)}) == {"ffn": 0.75, "vo": 0.0}
