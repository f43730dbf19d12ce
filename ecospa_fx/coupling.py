"""The coupling graph: units that go together, gathered into couples of weight matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import networkx as nx
import numpy as np

from ecospa_fx.labels import Ids, Reason
from ecospa_fx.stacks import Stack

DEFAULT_KINDS = ("qk", "vo", "ffn", "lowrank", "conv", "head")


@dataclass(frozen=True)
class Member:
    """One parameter axis in a couple.

    Attributes:
        parameter: the parameter's name.
        axis: its axis.
        role: ``"out"`` where the axis is produced, ``"in"`` where the parameter sums over it.
    """

    parameter: str
    axis: int
    role: str

    def __str__(self) -> str:
        return f"{self.parameter}[{self.axis}:{self.role}]"


@dataclass(frozen=True, eq=False)
class Couple:
    """Weight matrices that multiply each other, of one head or KV group (paper, section 3.1).

    Attributes:
        name: the common path of its weights, the kind, and the head where there are several.
        kind: ``"qk"``, ``"vo"``, ``"ffn"``, ``"lowrank"``, ``"conv"``, ``"head"``, ``"expert"`` or
            ``"residual"``.
        weights: its parameter axes.
        units: component ids of its units, in the order of their first index.
        head: the head's (or KV group's) number, None without heads.
        slot: component of the head as a whole, -1 without heads.
    """

    name: str
    kind: str
    weights: tuple[Member, ...]
    units: Ids
    head: int | None = None
    slot: int = -1

    @property
    def num_units(self) -> int:
        """How many row/column groups can go one by one."""
        return len(self.units)

    def __repr__(self) -> str:
        weights = ", ".join(str(w) for w in self.weights)
        return f"Couple({self.name!r}, {self.num_units} units: {weights})"


@dataclass(frozen=True, eq=False)
class ParameterAxis:
    """Labels along one axis of one parameter.

    Attributes:
        parameter: name.
        axis: which axis.
        components: component of each index, shape ``[size]``; where each matrix of a stack has its own
            choice, of each index in each matrix, shape ``[rows * size]``.
        role: ``"in"`` or ``"out"``.
        weight: whether the parameter is a matrix (or more), rather than a bias or a scale.
        rows: number of matrices that choose for themselves, 1 for all alike.
        stack: the axes of these matrices, None for all alike.
    """

    parameter: str
    axis: int
    components: Ids
    role: str
    weight: bool
    rows: int = 1
    stack: Stack | None = None


@dataclass(frozen=True)
class Frozen:
    """A parameter axis, or a part of it, that may not shrink.

    Attributes:
        parameter: name.
        axis: which axis.
        indices: how many of its indices are frozen.
        size: the axis's size.
        reason: why, where, and what to do.
        kind: the kind of couple that its indices would be, as far as the flow of values tells.
    """

    parameter: str
    axis: int
    indices: int
    size: int
    reason: Reason
    kind: str = ""

    def __str__(self) -> str:
        part = "" if self.indices == self.size else f" ({self.indices} of {self.size})"
        return f"{self.parameter} axis {self.axis}{part}: {self.reason}"


@dataclass(frozen=True, eq=False)
class CouplingGraph:
    """All couples of a model, and all that is frozen.

    Attributes:
        couples: every couple, in the order of the model.
        frozen: each axis that may not shrink.
        axes: every labelled parameter axis.
        shapes: dense shape of every parameter.
        couple_of: couple of each component, -1 for none, shape ``[components]``.
        segment_of: segment of each unit, -1 for none; units of a segment are interchangeable.
        bundle_of: bundle of each segment; segments of a bundle keep equal counts (the heads of a layer).
        least: how many units of a segment have to stay, where that is more than one (a router's experts).
    """

    couples: tuple[Couple, ...]
    frozen: tuple[Frozen, ...]
    axes: tuple[ParameterAxis, ...]
    shapes: Mapping[str, tuple[int, ...]]
    couple_of: Ids
    segment_of: Ids
    bundle_of: Ids
    least: Mapping[int, int] = field(default_factory=dict)
    _by_name: dict[str, Couple] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_name.update({c.name: c for c in self.couples})

    def __getitem__(self, name: str) -> Couple:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Couple]:
        return iter(self.couples)

    def __len__(self) -> int:
        return len(self.couples)

    @property
    def boxed(self) -> Ids:
        """Segments whose parameters are boxes and hold equal counts: bool, shape ``[segments]``."""
        boxed = np.zeros(len(self.bundle_of), bool)
        for axis in self.axes:
            if axis.rows > 1:
                segments = self.segment_of[axis.components]
                boxed[segments[segments >= 0]] = True
        return boxed

    def of_kinds(self, kinds: tuple[str, ...] = DEFAULT_KINDS) -> tuple[Couple, ...]:
        """The couples of some kinds."""
        return tuple(c for c in self.couples if c.kind in kinds)

    @property
    def graph(self) -> nx.Graph:
        """Couples and weights as a bipartite graph; an edge says which axis, in which role."""
        graph = nx.Graph()
        for couple in self.couples:
            graph.add_node(couple.name, bipartite="couple", kind=couple.kind, num_units=couple.num_units)
            for w in couple.weights:
                graph.add_node(w.parameter, bipartite="weight", shape=self.shapes[w.parameter])
                graph.add_edge(couple.name, w.parameter, axis=w.axis, role=w.role)
        return graph

    def explain(self, parameter: str) -> str:
        """What holds and what moves one parameter.

        Raises:
            KeyError: no such parameter in the graph.
        """
        if parameter not in self.shapes:
            raise KeyError(f"{parameter!r} is not a parameter of the captured graph")
        lines = [f"{parameter} {list(self.shapes[parameter])}"]
        for couple in self.couples:
            for w in couple.weights:
                if w.parameter == parameter:
                    lines.append(f"  axis {w.axis} ({w.role}): {couple.num_units} units of {couple.name}")
        lines += [
            f"  axis {f.axis}: {f.indices} of {f.size} frozen: {f.reason}"
            for f in self.frozen
            if f.parameter == parameter
        ]
        return "\n".join(lines)

    def summary(self, width: int = 100) -> str:
        """A line per kind and layer path, then the frozen axes by reason."""
        groups: dict[tuple[str, str], list[Couple]] = {}
        for c in self.couples:
            groups.setdefault((c.name.split("[")[0], c.kind), []).append(c)
        lines = [f"{name:<48} {len(cs):>3} x {cs[0].num_units} units" for (name, _), cs in groups.items()]
        return "\n".join(line[:width] for line in lines)

    def __str__(self) -> str:
        return self.summary()


def common_path(names: list[str]) -> str:
    """The innermost module that holds all these parameters."""
    parts = [n.split(".")[:-1] for n in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def numbered(couples: list[Couple]) -> list[Couple]:
    """Number couples of one name: by head where they have one."""
    groups: dict[tuple[str, tuple[Member, ...]], list[int]] = {}
    for i, c in enumerate(couples):
        groups.setdefault((c.name, c.weights), []).append(i)
    result = list(couples)
    taken: dict[str, int] = {}
    for (name, _), numbers in groups.items():
        taken[name] = taken.get(name, 0) + 1
        base = name if taken[name] == 1 else f"{name}{taken[name]}"
        for head, i in enumerate(numbers):
            alone = len(numbers) == 1
            result[i] = replace(
                couples[i], name=base if alone else f"{base}[{head}]", head=None if alone else head
            )
    return result
