"""Collecting: Python's search for cyclic garbage, which stands still while graphs are built."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nothing searches for cyclic garbage.

    Graphs are many small objects that live on. The search goes over all of them again and again while they
    are made, in vain: it took a quarter of the time for a LLaMA of 64 layers. What no cycle holds is freed as
    ever.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
