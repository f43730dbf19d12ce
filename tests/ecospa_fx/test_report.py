"""The report: numbers, a table for people and a dict for machines."""

import json

import numpy as np
import pytest

from ecospa_fx.plan import CoupleLoss, Plan, PlanSettings
from ecospa_fx.removal import Removal
from ecospa_fx.report import SparsifyReport

LOSSES = (
    *(CoupleLoss(f"layers.{i}.attn.qk[{h}]", "qk", 8, 8, 6 - i) for i in range(2) for h in range(2)),
    CoupleLoss("layers.0.mlp.ffn", "ffn", 1500, 1200, 1200),
)
PLAN = Plan(Removal(), LOSSES, 1_234_567, 1_000_000, 900_000, 665_433)


def test_numbers_are_the_plans() -> None:
    report = SparsifyReport.of(PLAN, 0.25)
    assert (report.params_before, report.params_after) == (1_234_567, 1_000_000)
    assert (report.coupled_before, report.coupled_after) == (900_000, 665_433)
    assert report.losses[0].lost == 2


def test_the_dict_is_json_ready() -> None:
    data = json.loads(json.dumps(SparsifyReport.of(PLAN, 0.25).to_dict()))
    assert data["losses"][-1] == {
        "couple": "layers.0.mlp.ffn",
        "kind": "ffn",
        "dense": 1500,
        "before": 1200,
        "after": 1200,
    }
    assert data["seconds"] == 0.25


def test_couples_that_differ_in_numbers_share_a_line() -> None:
    assert str(SparsifyReport.of(PLAN, 0.25)).splitlines() == [
        "parameters             1,234,567 ->        1,000,000  (-19.00 %)",
        "held by couples          900,000 ->          665,433  (-26.06 %)",
        "couples              count  units before  units after    lost  kept in each",
        "layers.*.attn.qk[*]      4            32           22  31.2 %     5..6 of 8",
        "layers.*.mlp.ffn         1         1,200        1,200   0.0 %  1200 of 1200",
        "in 0.25 s",
    ]


def with_width(width: int, dense: int = 16, round_to: int = 1) -> str:
    gone = {1: np.arange(width, dense)} if width < dense else {}
    removal = Removal({"w": (8, dense), "b": (dense,)}, {"w": gone, "b": {0: np.arange(1)}})
    plan = Plan(removal, (), 9, 8, 7, 6, PlanSettings(round_to=round_to))
    return str(SparsifyReport.of(plan, 0.25))


def test_odd_widths_are_told() -> None:
    assert "1 matrices have a width that is no multiple of 8 any more" in with_width(13)


@pytest.mark.parametrize("case", [(8,), (16,), (9, 13), (13, 16, 8)], ids=str)
def test_widths_that_are_none_of_the_plans_doing(case: tuple[int, ...]) -> None:
    assert "multiple of 8" not in with_width(*case)
