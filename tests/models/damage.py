"""Changes to the JSON of a file, for tests of what a reader refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets the entry at a path to a value: ``put("removed", "0.weight", 3)``."""
    *path, last, value = path_and_value

    def change(data: Any) -> None:
        for key in path:
            data = data[key]
        data[last] = value

    return change
