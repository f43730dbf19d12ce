"""Arrays of integers."""

from __future__ import annotations

import numpy as np


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct entries of an integer array, ascending; by sorting, which is faster than NumPy's hashing.

    >>> distinct(np.array([[3, 1], [1, 2]]))
    array([1, 2, 3])
    """
    line = np.sort(values, axis=None)
    return line[np.concatenate([[True], line[1:] != line[:-1]])] if len(line) else line
