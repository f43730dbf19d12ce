"""Targets: what may be asked for, and numbers that go down."""

from __future__ import annotations

from typing import Any

import pytest

from ecospa_fx.errors import ScheduleError
from ecospa_fx.target import Aim, Target


def test_kinds_in_play() -> None:
    assert Target(0.5).kinds(("qk", "ffn")) == ("qk", "ffn")
    assert Target({"vo": 0.1}).kinds(("qk", "ffn")) == ("vo",)
    assert Target({"vo": 0.1}).to_dict() == {"target_ratio": {"vo": 0.1}, "target_params": None}


def test_an_aim_ends_exactly() -> None:
    aim = Aim(103, 50)
    assert [aim.at(x) for x in (0.0, 0.5, 1.0)] == [103, 77, 50]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "neither"),
    "both": ({"ratio": 0.1, "params": 3}, "and not both"),
    "one": ({"ratio": 1.0}, r"1\.0, not in \[0, 1\)"),
    "a size": ({"params": 0}, "not a whole number above zero"),
    "no kinds": ({"ratio": {}}, "names no kind"),
    "a kind of one": ({"ratio": {"ffn": 1.0, "qk": -1}}, "of 'ffn' is 1.0.*of 'qk' is -1"),
    "a number for a kind": ({"ratio": {3: 0.5}}, "names 3, which is no kind"),
    "text": ({"ratio": {"ffn": "half"}}, "'half', not in"),
}


@pytest.mark.parametrize(("given", "match"), BAD.values(), ids=BAD)
def test_what_is_malformed(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        Target(**given)
