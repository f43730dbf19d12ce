"""Collecting: the search for garbage stands still inside, and afterwards is as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ecospa_fx.collecting import uncollected


@pytest.fixture(params=[True, False])
def running(request: pytest.FixtureRequest) -> Iterator[bool]:
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def test_it_is_as_it_was_afterwards(running: bool) -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == running


def test_also_after_an_error(running: bool) -> None:
    with pytest.raises(ValueError, match="wrong"), uncollected():
        raise ValueError("wrong")
    assert gc.isenabled() == running
