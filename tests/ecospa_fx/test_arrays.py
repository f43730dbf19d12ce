"""Distinct entries, as NumPy finds them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ecospa_fx.arrays import distinct


@given(st.lists(st.integers(-5, 5)))
def test_distinct_is_unique(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert distinct(array).tolist() == np.unique(array).tolist()
