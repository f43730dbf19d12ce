"""Alike: what tells two modules apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ecospa_fx.alike import differences, kind, state_of


def module(**attributes: Any) -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    made[1].__dict__.update(attributes)
    return made


SHARED = object()
INNER = nn.Tanh()


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (1, 1, False),
        (1, 2, True),
        (1, 1.0, True),
        (True, 1, True),
        ("a", "a", False),
        (torch.float32, torch.float32, False),
        (SHARED, SHARED, False),
        (object(), object(), True),
        ([1, (2, "x")], [1, (2, "x")], False),
        ([1, 2], [1, 3], True),
        ([1], (1,), True),
        ({"a": 1}, {"a": 1}, False),
        ({"a": 1}, {"b": 1}, True),
        ({1, 2}, {2, 1}, False),
        (functools.partial(max, 1), functools.partial(max, 1), False),
        (functools.partial(max, 1), functools.partial(max, 2), True),
        (float("nan"), float("nan"), True),
        (INNER.forward, INNER.forward, False),
        (INNER.forward, nn.Tanh().forward, True),
        (torch.ones(1), torch.ones(1), True),
    ],
)
def test_attributes(one: Any, other: Any, found: bool) -> None:
    assert differences(module(extra=one), module(extra=other)) == ({("1", "extra")} if found else set())


def test_an_attribute_that_only_one_has_is_a_difference() -> None:
    assert differences(module(extra=None), module()) == {("1", "extra")}


def test_references_among_submodules_are_alike_if_they_point_to_the_same_place() -> None:
    one, other = module(), module()
    for made, target in ((one, one[0]), (other, other[0])):
        made[1].__dict__["friend"] = target
        made[1].__dict__["call"] = target.forward
    assert differences(one, other) == set()
    other[1].__dict__["friend"] = module()[0]
    assert differences(one, other) == {("1", "friend")}


def double(made: nn.Module) -> None:
    made.double()


def unbiased(made: nn.Module) -> None:
    made[0].bias = None


def frozen(made: nn.Module) -> None:
    made[0].weight.requires_grad_(False)


def hooked(made: nn.Module) -> None:
    made[0].register_forward_hook(lambda *_: None)


def other_class(made: nn.Module) -> None:
    made[1] = nn.GELU()


def buffered(made: nn.Module) -> None:
    made.register_buffer("table", torch.ones(2))


@pytest.mark.parametrize("change", [double, unbiased, frozen, hooked, other_class, buffered])
def test_what_they_are_made_of(change: Callable[[nn.Module], None]) -> None:
    one, other = module(), module()
    assert differences(one, other) == set()
    change(other)
    assert differences(one, other) is None


def test_training_is_an_attribute() -> None:
    assert differences(module(), module().eval()) == {("", "training"), ("0", "training"), ("1", "training")}


def test_kind_tells_layouts_apart() -> None:
    table = torch.ones(2, 3)
    assert kind(table) == kind(torch.zeros(2, 3))
    assert kind(table) != kind(torch.ones(3, 2).T)
    assert kind(table) != kind(table.bool())
    assert kind(None) != kind(table)


def test_state_shows_what_was_set() -> None:
    made = module(items=[1], count=0)
    before = state_of(made)
    assert state_of(made) == before
    made[1].__dict__["count"] = 1
    assert state_of(made) != before
