"""Arrays of integers."""

from __future__ import annotations

import numpy as np


def along(line: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A line along one axis of an array of ``rank`` axes; the others have size 1.

    >>> along(np.arange(3), 2, -2).shape
    (3, 1)
    """
    return line.reshape([-1 if a == axis % rank else 1 for a in range(rank)])


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct entries of an integer array, ascending; by sorting, which is faster than NumPy's hashing.

    >>> distinct(np.array([[3, 1], [1, 2]]))
    array([1, 2, 3])
    """
    line = np.sort(values, axis=None)
    return line[np.concatenate([[True], line[1:] != line[:-1]])] if len(line) else line
