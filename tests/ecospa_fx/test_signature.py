"""Calls: how arguments are named, and which calls share a capture."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import DynamicCache

from ecospa_fx.errors import InputError
from ecospa_fx.signature import bind, key_of, required_arguments, speaking, state_leaves, unbind


def forward(x: Any, mask: Any = None, /, y: Any = 1, *rest: Any, flag: Any = None, **more: Any) -> None: ...


def plain(x: Any, mask: Any = None) -> None: ...


BOUND: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "by position": (plain, (1, 2), {}, {"x": 1, "mask": 2}),
    "by keyword": (plain, (), {"mask": 2, "x": 1}, {"x": 1, "mask": 2}),
    "none left out": (plain, (1, None), {}, {"x": 1}),
    "only by position": (forward, (1, 2), {}, {"_positional_0": 1, "_positional_1": 2}),
    "before a star": (
        forward,
        (1, None, 3, 4),
        {},
        {f"_positional_{i}": v for i, v in enumerate((1, None, 3, 4))},
    ),
    "keywords sorted": (forward, (1,), {"b": 2, "a": 3}, {"_positional_0": 1, "a": 3, "b": 2}),
}


@pytest.mark.parametrize(("function", "args", "kwargs", "named"), BOUND.values(), ids=BOUND)
def test_bind(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], named: dict[str, Any]) -> None:
    found = bind(function, args, kwargs)
    assert found == named
    assert list(found) == list(named)
    positional, keyword = unbind(found)
    assert bind(function, positional, keyword) == named


def test_a_call_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"does not fit forward\(x: Any, mask: Any = None\).*'z'"):
        bind(plain, (1,), {"z": 2})


@pytest.mark.parametrize(
    ("function", "names"), [(plain, "x"), (lambda a, b, c=1: 0, "a, b"), (lambda c=1: 0, "x")]
)
def test_required_arguments(function: Any, names: str) -> None:
    assert required_arguments(function) == names


X = torch.ones(2, 3)
KEYS: dict[str, tuple[dict[str, Any], bool]] = {
    "same": ({"x": X}, True),
    "other sizes": ({"x": torch.ones(5, 1)}, True),
    "other values": ({"x": X * 2}, True),
    "other rank": ({"x": torch.ones(2)}, False),
    "other dtype": ({"x": X.double()}, False),
    "other name": ({"y": X}, False),
    "more": ({"x": X, "mask": X}, False),
    "a list": ({"x": [X]}, False),
    "a number": ({"x": 3}, False),
}


@pytest.mark.parametrize(("named", "same"), KEYS.values(), ids=KEYS)
def test_which_calls_share_a_capture(named: dict[str, Any], same: bool) -> None:
    modules = [nn.Linear(3, 3)]
    assert (key_of(named, modules, None) == key_of({"x": X}, modules, None)) is same


def test_mode_and_dtype_count() -> None:
    model = nn.Linear(3, 3)
    keys = [key_of({"x": X}, [model], model.weight)]
    model.eval()
    keys.append(key_of({"x": X}, [model], model.weight))
    model.double()
    keys.append(key_of({"x": X}, [model], model.weight))
    assert len(set(keys)) == 3
    assert key_of({"n": 1}, [model], None) != key_of({"n": 2}, [model], None)


def test_leaves_of_a_cache_are_state() -> None:
    tree = pytree.tree_structure({"x": 1, "past": [2, (3, 4)]})
    assert state_leaves(tree) == [False] * 4

    class KeyCache(DynamicCache): ...

    pytree.register_pytree_node(
        KeyCache, lambda c: ([1, 2], None), lambda v, c: KeyCache(), serialized_type_name="test.KeyCache"
    )
    assert state_leaves(pytree.tree_structure({"x": 0, "past": KeyCache(), "y": 0})) == [
        False,
        True,
        True,
        False,
    ]


def test_a_function_under_the_signature_of_another() -> None:
    run = speaking(lambda *args, **kwargs: (args, kwargs), plain)
    assert inspect.signature(run) == inspect.signature(plain)
    assert run(1, mask=2) == ((1,), {"mask": 2})
