"""Facts about labels resolve into components, against brute force."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecospa_fx.labels import LabelArray, LabelSpace, Partition, Reason, Tag, Value

SIZE = 9
PAIRS = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=10)
PINS = st.lists(st.integers(0, SIZE - 1), max_size=2)


def space_of(unions: list, implications: list = (), pins: list = ()) -> LabelSpace:  # type: ignore[assignment]
    space = LabelSpace()
    labels = space.fresh((SIZE,))
    for a, b in unions:
        space.union(labels[[a]], labels[[b]])
    for coarse, fine in implications:
        space.imply(labels[[coarse]], labels[[fine]])
    for pinned in pins:
        space.pin(labels[[pinned]], Reason(f"reason {pinned}"))
    return space


def together(partition: Partition) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(partition.component == c).tolist()) for c in partition.component}


@given(PAIRS)
def test_components_are_those_of_the_graph_of_unions(unions: list[tuple[int, int]]) -> None:
    graph = nx.Graph()
    graph.add_nodes_from(range(SIZE))
    graph.add_edges_from(unions)
    expected = {frozenset(c) for c in nx.connected_components(graph)}
    assert together(space_of(unions).resolve()) == expected


@given(PAIRS, PAIRS, PINS, st.sets(st.integers(0, SIZE - 1)))
def test_close_adds_exactly_what_is_implied(
    unions: list[tuple[int, int]], implications: list[tuple[int, int]], pins: list[int], first: set[int]
) -> None:
    partition = space_of(unions, implications, pins).resolve()
    dead = np.zeros(partition.num_components, bool)
    dead[partition.component[list(first)]] = True
    expected = dead.copy()
    edges = [(int(c), int(f)) for c, f in zip(partition.coarse, partition.fine, strict=True)]
    for _ in range(SIZE):
        for coarse, _ in edges:
            if partition.pin[coarse] < 0 and all(expected[f] for c, f in edges if c == coarse):
                expected[coarse] = True
    assert (partition.close(dead) == expected).all()


@given(PAIRS, PAIRS)
def test_implications_between_components_have_no_cycle(
    unions: list[tuple[int, int]], implications: list[tuple[int, int]]
) -> None:
    partition = space_of(unions, implications).resolve()
    edges = list(zip(partition.coarse.tolist(), partition.fine.tolist(), strict=True))
    assert nx.is_directed_acyclic_graph(nx.DiGraph(edges))
    assert len(set(edges)) == len(edges)


def test_a_cycle_of_implications_is_one_component() -> None:
    partition = space_of([], [(0, 1), (1, 2), (2, 0), (3, 0)]).resolve()
    assert len(set(partition.component[:3])) == 1
    assert partition.coarse.tolist() == [partition.component[3]]


def test_a_pin_holds_the_whole_component_and_the_first_reason_stays() -> None:
    partition = space_of([(0, 1)], pins=[1, 0, 4]).resolve()
    held = partition.pin[partition.component]
    assert partition.reasons[held[0]].text == partition.reasons[held[1]].text == "reason 1"
    assert partition.reasons[held[4]].text == "reason 4"
    assert held[2] == -1


def test_tags_gather_over_a_component_but_stay_apart_by_label() -> None:
    space = space_of([(0, 1)])
    space.tag(np.array([0]), Tag.DOT)
    space.tag(np.array([1]), Tag.CONV)
    partition = space.resolve()
    assert partition.tags[partition.component[0]] == Tag.DOT | Tag.CONV
    assert partition.label_tags[:3].tolist() == [Tag.DOT, Tag.CONV, Tag.NONE]


def test_union_and_imply_broadcast() -> None:
    space = LabelSpace()
    heads, dims = space.fresh((3, 1)), space.fresh((1, 4))
    space.union(heads, dims)
    assert space.resolve().num_components == 1


def test_more_unions_leave_a_copy_of_the_space_alone() -> None:
    import copy

    space = space_of([(0, 1)])
    other = copy.copy(space)
    other.extend([(np.array([2]), np.array([3]))])
    assert other.resolve().num_components == space.resolve().num_components - 1


def test_no_labels_at_all() -> None:
    partition = LabelSpace().resolve()
    assert partition.num_components == 0
    assert partition.close(np.zeros(0, bool)).size == 0


def test_axes_of_arrays_and_values() -> None:
    array = LabelArray(np.arange(6).reshape(2, 1, 3))
    value = Value((2, 5, 3), (False,) * 3, (array,))
    assert array.axes == {0, 2}
    assert (value.on(0), value.on(1), value.rank) == ((array,), (), 3)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason("stays"), "stays"),
        (Reason("stays", "aten.x"), "stays [aten.x]"),
        (Reason("stays", "aten.x", "x_1", "m.py:3: y = x()"), "stays [aten.x] at m.py:3: y = x()"),
    ],
)
def test_a_reason_says_what_and_where(reason: Reason, text: str) -> None:
    assert str(reason) == text
