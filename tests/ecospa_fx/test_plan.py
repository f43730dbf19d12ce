"""The plan as data: settings, JSON there and back, and what is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ecospa_fx.errors import PlanError
from ecospa_fx.plan import CoupleLoss, Plan, PlanSettings
from ecospa_fx.removal import Removal
from tests.models.damage import put


def example() -> Plan:
    removal = Removal(
        {"a.weight": (4, 3), "b.weight": (2, 4)},
        {"a.weight": {0: np.array([1, 3])}, "b.weight": {1: np.array([1, 3])}},
    )
    settings = PlanSettings("uniform", kinds=("ffn",), limits={"ffn": 0.5}, round_to=2)
    return Plan(removal, (CoupleLoss("ffn", "ffn", 4, 4, 2),), 20, 10, 20, 10, settings, "taylor")


def test_json_there_and_back() -> None:
    plan = example()
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).settings == plan.settings


def test_plans_differ_by_what_they_remove() -> None:
    other = example().to_dict()
    other["removal"]["removed"]["a.weight"]["0"] = [1, 2]
    assert Plan.from_dict(other) != example()
    assert example() != "a plan"


def test_printed_as_a_table() -> None:
    lines = str(example()).splitlines()
    assert lines[0] == "Plan: uniform allocation by taylor"
    assert lines[1].split() == ["parameters", "20", "->", "10", "(-50.00", "%)"]
    assert lines[-1].split() == ["ffn", "1", "4", "2", "50.0", "%", "2", "of", "4"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("format", 99), "format 99"),
        (put("extra", 1), "unknown entry 'extra'"),
        (lambda d: d.pop("score"), "lacks 'score'"),
        (put("params_after", -1), "below zero"),
        (put("params_after", True), "not of type int"),
        (put("params_after", 11), "contradict"),
        (put("losses", {}), "not of type list"),
        (put("losses", 0, "after", 5), "lets 'ffn' grow"),
        (put("losses", 0, "kind", 5), "kind of a loss"),
        (put("settings", "top_k", 2.0), "top_k is 2.0"),
        (put("settings", "colour", "red"), "unknown entry 'colour'"),
        (put("settings", "kinds", "ffn"), "not of type list"),
        (put("removal", "removed", "a.weight", "0", [9]), "within"),
        (put("removal", "removed", "a.weight", "0", [0, 1, 2, 3]), "empty"),
        (put("removal", "removed", "a.weight", "x", [0]), "cannot be read"),
        (put("removal", "removed", []), "not of type dict"),
    ],
)
def test_damaged_plans_are_refused(change: Callable[[dict[str, Any]], None], words: str) -> None:
    data = example().to_dict()
    change(data)
    with pytest.raises(PlanError, match=words):
        Plan.from_json(json.dumps(data))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(PlanError, match="not JSON"):
        Plan.from_json("{")
    with pytest.raises(PlanError, match="not of type dict"):
        Plan.from_json("[]")


@pytest.mark.parametrize(
    "wrong",
    [
        {"allocation": "greedy"},
        {"top_k": 0.0},
        {"top_k": 1.5},
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"kinds": ()},
        {"kinds": (1,)},
        {"min_width": 0},
        {"round_to": 1.5},
        {"round_to": True},
        {"limits": {"ffn": 1.1}},
        {"remove_heads": "some"},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(wrong)) if "limits" not in wrong else "limit 'ffn'"):
        PlanSettings(**wrong)


def test_all_culprits_are_listed() -> None:
    with pytest.raises(PlanError, match=r"top_k.*; min_width"):
        PlanSettings(top_k=7, min_width=0)
