"""The course: sizes between the beginning and the target."""

from __future__ import annotations

import pytest

from ecospa_fx import PlanError
from ecospa_fx.course import Course
from ecospa_fx.ramp import Ramp
from ecospa_fx.target import Target
from tests.models.training import DENSE, UNIT, ffn


def course(target: Target) -> Course:
    return Course(target, Ramp(1, 0, 4, "linear"), {"top_k": 0.5})


@pytest.mark.parametrize(
    "target", [Target(0.5), Target(params=DENSE - 17 * UNIT), Target({"ffn": 0.5})], ids=str
)
def test_sizes_on_the_way(target: Target) -> None:
    one = course(target)
    assert one.aims == {}
    one.measure(ffn())
    sizes = [one.size_at(step) for step in (0, 2, 4, 9)]
    assert sizes[0] == DENSE
    assert abs(sizes[1] - (DENSE - 8.5 * UNIT)) < 1
    assert sizes[2:] == [DENSE - 17 * UNIT] * 2


def test_what_a_round_is_asked_for() -> None:
    model = ffn()
    whole, kinds = course(Target(0.5)), course(Target({"ffn": 0.5}))
    for one in (whole, kinds):
        one.measure(model)
    assert whole.asked(model, 4) == {"target_params": DENSE - 17 * UNIT}
    assert kinds.asked(model, 4) == {"ratio": {"ffn": 0.5}}
    assert kinds.asked(model, 0) == {"ratio": {"ffn": 0.0}}


def test_kinds_and_settings() -> None:
    assert course(Target({"vo": 0.1})).settings.kinds == ("vo",)
    assert course(Target(0.1)).config()["settings"]["top_k"] == 0.5
    with pytest.raises(PlanError, match="unknown setting"):
        Course(Target(0.1), Ramp(1, 0, 4), {"tresh": 1})
