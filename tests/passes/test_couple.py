"""Couple: kinds, heads, names and counts of couples in tiny graphs, and what ends in no couple."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.passes.couple import couple
from ecospa_fx.passes.propagate import propagate
from tests.models.tiny import Function, program

QKV = {"q": (8, 6), "k": (8, 6), "v": (8, 6), "o": (6, 8)}
FFN = {"a": (8, 6), "b": (6, 8)}


def graph_of(function: Function, **shapes: tuple[int, ...]) -> CouplingGraph:
    return couple(propagate(program(function, **shapes)))[0]


def listed(graph: CouplingGraph) -> list[str]:
    """Each couple as ``name units: weight axis role ...``."""
    return [
        f"{c.name} {c.num_units}: {' '.join(f'{w.parameter}{w.axis}{w.role}' for w in c.weights)}"
        for c in graph
    ]


def attention(heads: int, groups: int) -> Function:
    def function(m: object, x: Tensor) -> Tensor:
        q, k, v = (
            F.linear(x, w).unflatten(-1, (n, -1)).transpose(1, 2)
            for w, n in ((m.q, heads), (m.k, groups), (m.v, groups))
        )
        k, v = (y.repeat_interleave(heads // groups, 1) for y in (k, v))
        y = (q @ k.mT).softmax(-1) @ v
        return F.linear(y.transpose(1, 2).flatten(-2), m.o)

    return function


def fused(m: object, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, m.qkv).chunk(3, -1)
    return F.linear((q @ k.mT).softmax(-1) @ v, m.o)


def stream(m: object, x: Tensor) -> Tensor:
    y = F.linear(x, m.a)
    return F.linear(y + F.linear(F.linear(y, m.c).relu(), m.d), m.b)


CASES: dict[str, tuple[Function, dict[str, tuple[int, ...]], list[str]]] = {
    "ffn": (lambda m, x: F.linear(F.linear(x, m.a).relu(), m.b), FFN, ["ffn 8: a0out b1in"]),
    "ffn with a bias": (lambda m, x: F.linear(F.linear(x, m.a, m.c).relu(), m.b), FFN | {"c": (8,)},
                        ["ffn 8: a0out b1in"]),
    "gate": (lambda m, x: F.linear(F.silu(F.linear(x, m.g)) * F.linear(x, m.a), m.b), FFN | {"g": (8, 6)},
             ["ffn 8: a0out b1in g0out"]),
    "low rank": (lambda m, x: F.linear(F.linear(x, m.a), m.b), FFN, ["lowrank 8: a0out b1in"]),
    "residual": (stream, FFN | {"c": (9, 8), "d": (8, 9)},
                 ["residual 8: a0out b1in c1in d0out", "ffn 9: c0out d1in"]),
    "one head": (attention(1, 1), QKV, ["qk 8: q0out k0out", "vo 8: v0out o1in"]),
    "two heads": (attention(2, 2), QKV,
                  ["qk[0] 4: q0out k0out", "qk[1] 4: q0out k0out",
                   "vo[0] 4: v0out o1in", "vo[1] 4: v0out o1in"]),
    "a group": (attention(2, 1), QKV | {"k": (4, 6), "v": (4, 6)}, ["qk 4: q0out k0out", "vo 4: v0out o1in"]),
    "fused": (fused, {"qkv": (24, 6), "o": (6, 8)}, ["qk 8: qkv0out", "vo 8: qkv0out o1in"]),
    "convolution": (lambda m, x: F.conv1d(F.conv1d(x.mT, m.a).relu(), m.b), {"a": (8, 6, 3), "b": (6, 8, 1)},
                    ["conv 8: a0out b1in"]),
    "two of a kind": (
        lambda m, x: F.linear(F.linear(F.linear(F.linear(x, m.a).relu(), m.b).relu(), m.c).relu(), m.d),
        FFN | {"c": (9, 6), "d": (6, 9)}, ["ffn 8: a0out b1in", "ffn2 6: b0out c1in", "ffn3 9: c0out d1in"]),
    "nothing": (lambda m, x: F.linear(F.linear(x, m.a).softmax(-1), m.b), FFN, []),
    "one weight": (lambda m, x: F.linear(x, m.a).square().sum(-1), {"a": (8, 6)}, []),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shapes", "couples"), CASES.values(), ids=CASES)
def test_couples(function: Function, shapes: dict[str, tuple[int, ...]], couples: list[str]) -> None:
    graph = graph_of(function, **shapes)
    assert sorted(listed(graph)) == sorted(couples)
    coupled = {(w.parameter, w.axis) for c in graph for w in c.weights}
    frozen = {(f.parameter, f.axis) for f in graph.frozen}
    assert {(a.parameter, a.axis) for a in graph.axes if a.weight} <= coupled | frozen


def test_frozen_axes_say_why() -> None:
    graph = graph_of(*CASES["one weight"][:1], a=(8, 6))
    reasons = {f.axis: str(f.reason) for f in graph.frozen}
    assert reasons[0] == "no second weight depends on it"
    assert "without labels" in reasons[1]
    assert all((f.indices, f.size) == (n, n) for f, n in zip(graph.frozen, (8, 6), strict=True))


def test_a_part_of_an_axis_is_frozen() -> None:
    graph = graph_of(
        lambda m, x: (F.linear(F.linear(x, m.a)[..., 3:], m.c), F.linear(x, m.a)[..., :3]), a=(8, 6), c=(6, 5)
    )
    (part,) = [f for f in graph.frozen if (f.parameter, f.axis) == ("a", 0)]
    assert (part.indices, part.size) == (3, 8)
    assert str(part).startswith("a axis 0 (3 of 8): the model returns this axis")
    assert [c.num_units for c in graph] == [5]


def test_heads_of_a_layer_are_a_bundle() -> None:
    graph = graph_of(attention(2, 2), **QKV)
    bundles = {}
    for c in graph:
        segments = set(graph.segment_of[c.units].tolist())
        assert len(segments) == 1
        bundles[c.name] = int(graph.bundle_of[segments.pop()])
    assert bundles["qk[0]"] == bundles["qk[1]"] != bundles["vo[0]"] == bundles["vo[1]"]


def test_heads_have_numbers_and_slots() -> None:
    graph = graph_of(attention(2, 2), **QKV)
    assert [c.head for c in graph.of_kinds(("vo",))] == [0, 1]
    assert graph["vo[0]"].slot != graph["vo[1]"].slot
    assert graph_of(attention(1, 1), **QKV)["vo"].head is None


def stacked(m: object, x: Tensor) -> Tensor:
    """Queries, keys and values in one box ``[time, 3, dims]`` that stays one."""
    y = F.linear(x, m.qkv).unflatten(-1, (3, 8)).relu().contiguous()
    q, k, v = y.flip(-2).unbind(-2)
    return F.linear((q @ k.mT).softmax(-1) @ v, m.o)


def test_rows_of_a_box_are_tied_until_they_keep_equal_counts() -> None:
    before = propagate(program(stacked, qkv=(24, 6), o=(6, 8)))
    graph, after = couple(before)
    assert after.partition.num_components <= before.partition.num_components
    assert before.partition is not after.partition or after is before
    rows = after.partition.component[after.labels["qkv"][0]].reshape(3, 8)
    counts = [{int((graph.couple_of[r] == c).sum()) for r in rows} for c in range(len(graph))]
    assert all(len(n) == 1 for n in counts)


def test_the_result_does_not_depend_on_chance() -> None:
    made = propagate(program(attention(2, 2), **QKV))
    first, second = couple(made)[0], couple(made)[0]
    assert listed(first) == listed(second)
    assert np.array_equal(first.segment_of, second.segment_of)
    assert torch.initial_seed() == 0


def tied(m: object, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.a).relu(), m.a.t())


def test_one_weight_may_lead_up_and_down() -> None:
    assert listed(graph_of(tied, a=(8, 6))) == ["ffn 8: a0in"]


def pooled(m: object, x: Tensor) -> Tensor:
    """Three learnt queries, whose values stand side by side."""
    weights = (m.p @ F.linear(x, m.k).mT).softmax(-1)
    return F.linear((weights @ F.linear(x, m.v)).flatten(1), m.w)


def test_values_of_learnt_queries_go_side_by_side() -> None:
    found = listed(graph_of(pooled, p=(3, 8), k=(8, 6), v=(5, 6), w=(6, 15)))
    assert found == ["qk 8: p1in k0out", "vo 5: v0out w1in"]
