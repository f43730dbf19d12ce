"""What a user who wrote an unknown name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The most similar of the known names as the end of a message; empty where none is.

    >>> did_you_mean("fisher_tailor", ["fisher_taylor", "l1"])
    "; did you mean 'fisher_taylor'?"
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
