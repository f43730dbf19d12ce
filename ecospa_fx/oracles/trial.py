"""A sample call of one operator, with labelled operands, as a program of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ecospa_fx.errors import VerifyError
from ecospa_fx.labels import Ids, LabelArray, Nature, Value, outer_axes
from ecospa_fx.layout import Layout
from ecospa_fx.passes.propagate import Interpreter
from ecospa_fx.program import Analysis, Program
from ecospa_fx.rules.call import Call
from ecospa_fx.rules.views import with_slots

Axes = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor argument of a sample call.

    Attributes:
        shape: its sizes; take different ones for axes that must not be confused.
        on: its label arrays, each by the axis, or the axes, that it covers.
        nature: what it depends on.
        zero: whether dead entries are exactly zero in the masked model.
        low: smallest value.
        high: one more than the largest; integers where ``whole``.
        kind: ``"real"``, ``"complex"``, ``"integer"`` or ``"truth"``.
        symbolic: axes whose size is symbolic.
        values: the tensor itself, instead of random numbers.
    """

    shape: tuple[int, ...]
    on: tuple[Axes, ...] = ()
    nature: Nature = Nature.ACTIVATION
    zero: bool = True
    low: float = -2.0
    high: float = 2.0
    kind: str = "real"
    symbolic: tuple[int, ...] = ()
    values: Tensor | None = None

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Values within the limits: float64, complex128, int64 or bool."""
        if self.values is not None:
            return self.values.double() if self.values.is_floating_point() else self.values
        parts = 2 if self.kind == "complex" else 1
        random = torch.rand((parts, *self.shape), generator=generator, dtype=torch.float64)
        tensor = random * (self.high - self.low) + self.low
        if self.kind == "complex":
            return torch.complex(tensor[0], tensor[1])
        if self.kind == "truth":
            return tensor[0] >= (self.low + self.high) / 2
        return tensor[0] if self.kind == "real" else tensor[0].long()


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an operator.

    Attributes:
        args: positional arguments; every tensor among them is an :class:`Operand`.
        kwargs: keyword arguments.
        frozen: nothing may be removable: the rule pins every label.
        shape_only: the results are random or uninitialised, so only their shapes are compared.
        rolls: whether some rotation is a symmetry of the call.
        dtype: of real operands.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False
    shape_only: bool = False
    rolls: bool = True
    dtype: torch.dtype = torch.float64


class Trial(Interpreter):
    """One operator call as a program of its own, with its labels.

    Args:
        target: the operator.
        sample: the call.
        seed: of the operands' values.
    """

    def __init__(self, target: Callable[..., Any], sample: Sample, seed: int = 0) -> None:
        self.target, self.sample = target, sample
        generator = torch.Generator().manual_seed(seed)
        found = [x for x in pytree.tree_leaves([sample.args, dict(sample.kwargs)]) if isinstance(x, Operand)]
        self.operands = list(dict.fromkeys(found))
        self.tensors = [self._typed(o.tensor(generator)) for o in self.operands]
        super().__init__(self._program())
        self.analysis: Analysis = self.run()
        self.component = self.analysis.partition.component

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.sample.dtype) if tensor.dtype == torch.float64 else tensor

    def _program(self) -> Program:
        graph = fx.Graph()
        self.inputs = [graph.placeholder(f"operand_{i}") for i in range(len(self.operands))]
        self.node = graph.call_function(self.target, *self._arguments(self.inputs))
        self.node.meta["val"] = result = self.run_with(self.tensors)
        self.outputs = [self.node]
        if not isinstance(result, Tensor):
            several = result if isinstance(result, (tuple, list)) else ()
            self.outputs = [
                graph.call_function(operator.getitem, (self.node, i)) for i in range(len(several))
            ]
            for node, tensor in zip(self.outputs, several, strict=True):
                node.meta["val"] = tensor
        graph.output(tuple(self.outputs))
        names = tuple(n.name for n in self.inputs)
        return Program(graph, {}, {}, pytree.tree_structure(0), names, lambda _: None)

    def _arguments(self, stand_ins: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        swap = dict(zip(self.operands, stand_ins, strict=True))
        given = (self.sample.args, dict(self.sample.kwargs))
        args, kwargs = pytree.tree_map(lambda x: swap.get(x, x) if isinstance(x, Operand) else x, given)
        return args, kwargs

    def run_with(self, tensors: Sequence[Tensor]) -> Any:
        """The operator itself, on these operands."""
        args, kwargs = self._arguments([t.clone() for t in tensors])
        return self.target(*args, **kwargs)

    def results(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All results of the operator, as a list."""
        result = self.run_with(tensors)
        several = result if isinstance(result, (tuple, list)) else (result,)
        return [r for r in several if isinstance(r, Tensor)]

    def _placeholder(self, node: fx.Node) -> None:
        operand = self.operands[self.inputs.index(node)]
        tensor = self.tensors[self.inputs.index(node)]
        symbolic = tuple(a in operand.symbolic for a in range(tensor.dim()))
        call = Call("operand", {}, (), self.space)
        arrays = tuple(self._fresh(tensor, on, operand.zero) for on in operand.on)
        self.values[node] = Value(
            tuple(tensor.shape), symbolic, with_slots(call, arrays) if arrays else (), operand.nature
        )

    def _fresh(self, tensor: Tensor, on: Axes, zero: bool) -> LabelArray:
        axes = {a % tensor.dim() for a in ((on,) if isinstance(on, int) else on)}
        return LabelArray(self.space.fresh([n if a in axes else 1 for a, n in enumerate(tensor.shape)]), zero)

    def _output(self, node: fx.Node) -> None:
        """A result may shrink: nobody else reads it."""

    @cached_property
    def call(self) -> Call:
        """The rule's view of the call."""
        return self.analysis.calls[self.node]

    @cached_property
    def given(self) -> list[Value]:
        """The operands as values."""
        return [self.values[n] for n in self.inputs]

    @cached_property
    def got(self) -> list[Value]:
        """The results as values."""
        return list(self.call.outputs)

    @cached_property
    def free(self) -> Ids:
        """Components that may go, and are not made of finer ones."""
        partition = self.analysis.partition
        free = partition.pin < 0
        free[partition.coarse] = False
        return np.flatnonzero(free)

    def rows(self) -> Iterator[Ids]:
        """Components of every label array, one row per outer index."""
        for value in [*self.given, *self.got, *(j.joint for j in self.call.joins)]:
            for array in value.arrays:
                outer = outer_axes(array, value.arrays)
                inner = max(array.axes - outer, default=max(array.axes))
                ids = np.moveaxis(array.ids, inner, -1)
                yield self.component[ids.reshape(-1, ids.shape[-1])]

    def name(self, message: str) -> str:
        """A message that says which call it is about."""
        shapes = ", ".join(f"{v.nature.name.lower()}{list(v.shape)}" for v in self.given)
        return f"{self.call.target}({shapes}): {message}"


def restrict(tensor: Tensor, layout: Layout) -> Tensor:
    """The entries of a dense tensor that a layout names."""
    for axis, index in layout.index.items():
        at = torch.from_numpy(np.ascontiguousarray(index))
        shape = [n if a == axis else m for a, (n, m) in enumerate(zip(at.shape, tensor.shape, strict=True))]
        tensor = tensor.take_along_dim(at.expand(shape), axis)
    return tensor


def require_equal(trial: Trial, expected: Tensor, got: Tensor, what: str) -> None:
    """Two tensors agree to round-off.

    Raises:
        VerifyError: they do not.
    """
    try:
        rtol, atol = (1e-9, 1e-11) if trial.sample.dtype == torch.float64 else (None, None)
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        raise VerifyError(
            trial.name(f"the smaller call {what} differs from the masked one: {error}")
        ) from error
