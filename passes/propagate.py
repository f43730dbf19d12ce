"""Propagate: interpret a program on label arrays."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ecospa_fx import ops
from ecospa_fx.arrays import along
from ecospa_fx.diagnosis import source_line
from ecospa_fx.errors import AnalysisError
from ecospa_fx.functions import CUSTOM_FUNCTION
from ecospa_fx.labels import LabelArray, LabelSpace, Nature, Reason, Value
from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.routing import Routing
from ecospa_fx.program import Analysis, Program
from ecospa_fx.routers import MARKERS
from ecospa_fx.rules import TABLE
from ecospa_fx.rules.call import Arrays, Call, nature_of
from ecospa_fx.rules.routers import MARKER_RULES
from ecospa_fx.rules.views import with_slots
from ecospa_fx.sizes import hint, static
from ecospa_fx.stacks import Stack

_MADE = tuple(f"aten.new_{word}.default" for word in ("zeros", "ones", "full"))  # known without the input


def propagate(program: Program, stacked: Mapping[str, Stack] | None = None) -> Analysis:
    """Run labels through the graph.

    Args:
        program: the captured program.
        stacked: parameters of which each matrix has labels of its own → the axes.

    Returns:
        Labels of every node and their resolved partition. Cost is linear in nodes and labels.
    """
    return Interpreter(program, stacked).run()


class Interpreter:
    """Runs the rules of a program's operators on label arrays, node by node."""

    def __init__(self, program: Program, stacked: Mapping[str, Stack] | None = None) -> None:
        self.program, self.stacked = program, stacked or {}
        self.space = LabelSpace()
        self.values: dict[fx.Node, Any] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.labels: dict[str, tuple[np.ndarray | None, ...]] = {}
        self.unknown: Counter[str] = Counter()
        self.routing = Routing(self.space, self.values)

    def run(self) -> Analysis:
        """Visit every node, then resolve what was found."""
        for node in self.program.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        partition = self.space.resolve()
        return Analysis(
            self.program, self.values, self.calls, self.labels, partition, dict(self.unknown), self.space,
            self.routing.picked, self.stacked,
        )  # fmt: skip

    def _placeholder(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            floating = value.is_floating_point() or value.is_complex()
            bare = bare_value(value, Nature.ACTIVATION if floating else Nature.INDEX)
            self.values[node] = self._cache(node, bare) if floating and self._is_state(node) else bare

    def _is_state(self, node: fx.Node) -> bool:
        names, flags = self.program.inputs, self.program.state_in
        return any(flag and name == node.name for name, flag in zip(names, flags, strict=False))

    def _cache(self, node: fx.Node, value: Value) -> Value:
        """A cache has heads and widths of its own, which follow whatever is written next to them."""
        shape = [1 if s else n for n, s in zip(value.shape, value.symbolic, strict=True)]
        call = Call("cache", {}, (value,), self.space, node.name)
        joint = LabelArray(self.space.fresh(shape), zero=True)
        return replace(value, arrays=with_slots(call, (joint,)) if joint.axes else ())

    def _get_attr(self, node: fx.Node) -> None:
        tensor, name = node.meta.get("val"), str(node.target)
        if not isinstance(tensor, torch.Tensor):
            return
        if name not in self.program.parameters or not tensor.is_floating_point():
            self.values[node] = bare_value(tensor, node.meta.get("nature", Nature.CONSTANT))
            return
        if name not in self.labels:
            self.labels[name] = self._labels(name, tensor.shape)
        arrays = []
        for axis, ids in enumerate(self.labels[name]):
            if ids is not None and ids.ndim > 1:
                arrays.append(LabelArray(self.stacked[name].spread(ids, tensor.shape)))
            elif ids is not None:
                arrays.append(LabelArray(along(ids, tensor.dim(), axis)))
        self.values[node] = replace(bare_value(tensor, Nature.WEIGHT), arrays=tuple(arrays))

    def _labels(self, name: str, shape: torch.Size) -> tuple[np.ndarray | None, ...]:
        """Labels for every axis; the matrices of a stack have their own along one axis, and go with them."""
        labels = [self.space.fresh((n,)) if n > 1 else None for n in shape]
        experts = self._experts(name)
        if experts is not None:
            labels[0] = experts
        if (stack := self.stacked.get(name)) is not None:
            count = shape[stack.rows]
            rows = self.space.slots((count,)) if stack.rows or experts is None else experts
            own = self.space.stack(count, shape[stack.axis])
            self.space.imply(rows[:, None], own)
            labels[stack.rows], labels[stack.axis] = rows, own
        return tuple(labels)

    def _experts(self, name: str) -> np.ndarray | None:
        """Labels of the experts that stand along axis 0 of a parameter, those of all routers united."""
        found = [r for r in self.program.routers if name in r.stacks]
        ids = [self.space.experts(r.number, r.experts) for r in found]
        for router, own in zip(found, ids, strict=True):
            self.space.union(ids[0], own)
            if router.refused is not None:
                self.space.pin(own, router.refused)
        return ids[0] if ids else None

    def _call_function(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source = self.values.get(node.args[0])  # type: ignore[arg-type]
            if isinstance(source, tuple):
                self.values[node] = source[node.args[1]]  # type: ignore[index]
                self.routing.output(node)
            return
        outputs = _outputs(node)
        args = named_arguments(node, lambda n: self.values.get(n, _plain(n)))
        call = Call(target_name(node), args, outputs, self.space, node.name, source_line(node))
        nature = Nature.CONSTANT if call.target in _MADE else nature_of(call.values())
        call.outputs = tuple(replace(o, nature=nature) for o in outputs)
        self.calls[node] = call
        flows = self._flow(node, call)
        self.routing.follow(node, call)
        read = _read(node, len(flows))
        result = tuple(
            replace(o, arrays=self._finish(call, f, o) if i in read else ())
            for i, (o, f) in enumerate(zip(call.outputs, flows, strict=True))
        )
        call.outputs = result
        if result:
            self.values[node] = result if _is_multiple(node) else result[0]

    def _flow(self, node: fx.Node, call: Call) -> list[Arrays]:
        if node.target in MARKERS:
            return _listed(MARKER_RULES[call.target].flow(call), call)
        if not any(v.arrays for v in call.values()):
            known = TABLE.find(call.target)
            return (
                _listed(known.flow(call), call)
                if known and "expand" in call.target
                else [()] * len(call.outputs)
            )
        found = TABLE.find(call.target)
        if found is None or _mutates_a_view(node):
            self.unknown[call.target] += 1
            text = (
                "no rule for this operator"
                if found is None
                else "writes into a tensor that is used elsewhere"
            )
            call.refuse(text)
            return [()] * len(call.outputs)
        return _listed(found.flow(call), call)

    def _finish(self, call: Call, arrays: Arrays, out: Value) -> Arrays:
        if 0 in out.shape:
            return ()
        call.pin((a for a in arrays if not a.axes), "one index of an axis stands alone")
        arrays = _one_each(call, [a for a in arrays if a.axes])
        for array in arrays:
            fits = array.ids.ndim == out.rank and all(
                n in (1, m) for n, m in zip(array.ids.shape, out.shape, strict=True)
            )
            if not fits:
                raise AnalysisError(
                    f"rule of {call.target} gave labels {array.ids.shape} for a value {out.shape} "
                    f"({call.source})"
                )
        return with_slots(call, arrays)

    def _output(self, node: fx.Node) -> None:
        flat = pytree.tree_leaves(node.args[0])
        state = (*self.program.state_out, *[False] * (len(flat) - len(self.program.state_out)))
        for source, cache in zip(flat, state, strict=True):
            value = self.values.get(source) if isinstance(source, fx.Node) and not cache else None
            if isinstance(value, Value):
                for array in value.arrays:
                    reason = Reason("the model returns this axis", "output", source.name)
                    self.space.pin(array.ids, reason)

    def _call_module(self, node: fx.Node) -> None:
        raise AnalysisError(f"call_module {node.target} in a normalised graph")


def _one_each(call: Call, arrays: Iterable[LabelArray]) -> Arrays:
    """One array per set of axes: where several cover the same axes, they die together."""
    table: dict[frozenset[int], LabelArray] = {}
    for array in arrays:
        known = table.setdefault(array.axes, array)
        call.space.union(known.ids, array.ids)
        table[array.axes] = replace(known, zero=known.zero or array.zero)
    return tuple(table.values())


def _listed(flows: Arrays | list[Arrays], call: Call) -> list[Arrays]:
    if isinstance(flows, list):
        return flows
    return [flows, *[()] * (len(call.outputs) - 1)] if call.outputs else []


def target_name(node: fx.Node) -> str:
    """Name under which the rule table knows the node's operator."""
    target = ops.STANDS_FOR.get(node.target, node.target)
    if target is CUSTOM_FUNCTION:
        return f"torch.autograd.Function {CUSTOM_FUNCTION.known[int(node.args[0])].__name__}"  # type: ignore[arg-type,union-attr]
    return (
        str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    )


def named_arguments(node: fx.Node, lookup: Any) -> dict[str, Any]:
    """Arguments by schema name; nodes go through ``lookup``."""
    target = ops.STANDS_FOR.get(node.target, node.target)
    names = _schema_names(target) if isinstance(target, torch._ops.OpOverload) else ()
    more = (f"arg{i}" for i in range(len(names), len(node.args)))
    args = dict(zip((*names, *more), node.args, strict=False)) | dict(node.kwargs)
    return {k: fx.map_arg(v, lookup) for k, v in args.items()}


@functools.cache
def _schema_names(target: torch._ops.OpOverload) -> tuple[str, ...]:
    return tuple(a.name for a in target._schema.arguments)


def _plain(node: fx.Node) -> Any:
    """A node that holds no tensor: its hint, where it is a number."""
    value = node.meta.get("val")
    return hint(value) if isinstance(value, (int, torch.SymInt)) else value


def bare_value(tensor: torch.Tensor, nature: Nature = Nature.CONSTANT) -> Value:
    """A value without labels."""
    symbolic = tuple(static(n) is None for n in tensor.shape)
    return Value(tuple(hint(n) for n in tensor.shape), symbolic, (), nature)


def _outputs(node: fx.Node) -> tuple[Value, ...]:
    value = node.meta.get("val")
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(bare_value(v) for v in items if isinstance(v, torch.Tensor))


def _is_multiple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _read(node: fx.Node, count: int) -> Container[Any]:
    """Outputs that something reads: torch 2.11 tells wrong shapes of an LSTM's last states."""
    if not _is_multiple(node) or any(u.target is not operator.getitem for u in node.users):
        return range(count)
    return {u.args[1] for u in node.users if u.users}


def _mutates_a_view(node: fx.Node) -> bool:
    """Whether an in-place operator changes what others still read."""
    if not writes(node):
        return False
    first = node.args[0]
    return isinstance(first, fx.Node) and len(first.users) > 1
