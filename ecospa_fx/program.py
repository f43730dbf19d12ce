"""The captured program: a dense graph over the model's own parameters, never changed after capture."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ecospa_fx.folds import assembly, flat
from ecospa_fx.labels import Ids, LabelSpace, Partition, Reason, Value
from ecospa_fx.routers import Router
from ecospa_fx.rules.call import Call, values_of
from ecospa_fx.stacks import Stack


@dataclass(frozen=True, eq=False)
class Program:
    """One captured signature of a model.

    Attributes:
        graph: flat tensors in, flat tensors out; ``get_attr`` nodes carry the model's own names.
        constants: tensors that the capture lifted, by attribute name.
        parameters: dense shape of every parameter that the graph reads.
        out_spec: how the flat outputs make up the model's own output type.
        inputs: name of every flat input.
        guard: raises InputError where flat inputs do not fit the capture.
        prepare: from a call's arguments to those of the graph, which may hold more.
        state_in: which flat inputs are a cache: state that shrinks with the model, not an input.
        state_out: which flat outputs are.
        routers: choices among experts that its markers tell of.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    parameters: Mapping[str, tuple[int, ...]]
    out_spec: pytree.TreeSpec
    inputs: tuple[str, ...]
    guard: Callable[[list[Any]], None]
    prepare: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    state_in: tuple[bool, ...] = ()
    state_out: tuple[bool, ...] = ()
    routers: tuple[Router, ...] = ()

    def leaves(self, named: Mapping[str, Any]) -> list[Any]:
        """Flat inputs of the graph for one call's arguments.

        Raises:
            InputError: they do not fit the capture.
        """
        leaves, _ = flat(self.prepare(named))
        self.guard(leaves)
        return leaves

    @functools.cached_property
    def output(self) -> Callable[[Sequence[Any]], Any]:
        """From flat outputs to the model's own output type."""
        return assembly(self.out_spec)


@dataclass(frozen=True, eq=False)
class Analysis:
    """Labels of every node of a program, and what follows from them.

    Attributes:
        program: the program.
        values: label value of every node that holds a tensor (a tuple of them for several outputs).
        calls: the rule's view of every operator call.
        labels: for every parameter, the label array of each axis (None for an axis of size 1); where each
            matrix of a stack has labels of its own, ``[rows, size]``.
        partition: which labels die together.
        unknown: operators without a rule, with how often they occur.
        space: the facts that the partition was resolved from.
        picked: values that stand for those of whichever expert the input picks → the node that picks it.
        stacked: parameters of which each matrix has labels of its own → the axes.
    """

    program: Program
    values: Mapping[fx.Node, Any]
    calls: Mapping[fx.Node, Call]
    labels: Mapping[str, tuple[Ids | None, ...]]
    partition: Partition
    unknown: Mapping[str, int]
    space: LabelSpace
    picked: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    stacked: Mapping[str, Stack] = field(default_factory=dict)

    def tied(self, pairs: Iterable[tuple[Ids, Ids]]) -> Analysis:
        """The same analysis with more labels united."""
        space = copy.copy(self.space)
        space.extend(pairs)
        return replace(self, space=space, partition=space.resolve())

    def reason(self, component: int) -> Reason | None:
        """Why a component is frozen, if it is."""
        pin = int(self.partition.pin[component])
        return self.partition.reasons[pin] if pin >= 0 else None

    def leaves(self) -> list[Value]:
        """Every distinct value, tuples taken apart."""
        return [v for value in self.values.values() for v in values_of(value)]
