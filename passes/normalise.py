"""Normalise: one flat graph of plain operators, without guards, assertions and hidden regions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from ecospa_fx import ops
from ecospa_fx.diagnosis import source_line
from ecospa_fx.errors import CaptureError
from ecospa_fx.passes.sweep import sweep

_ASSERTIONS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "_functional_assert",
)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def normalise(module: fx.GraphModule, followed: bool = False) -> fx.Graph:
    """A copy of the module's graph in normal form.

    Regions behind higher-order operators are inlined (their outputs detached, or their autocast mode
    entered and left), run-time assertions of the capture go, and what nobody reads goes too.

    Args:
        module: a captured module; it is not changed.
        followed: its branches went as its example went: what they relied on is checked at each call.

    Returns:
        The new graph, with flat inputs and outputs.
    """
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if followed and node.target is torch.ops.aten._assert_scalar.default:
            _held(graph, node, env)
        if _is_check(node):
            continue
        region = _region(module, node)
        if region is not None:
            env[node] = _inline(graph, node, region, env, followed)
        elif node.target is operator.getitem and isinstance(env[node.args[0]], (tuple, list)):
            env[node] = env[node.args[0]][node.args[1]]  # an inlined region has no tuple of its own
        else:
            env[node] = _copy(graph, node, env)
    sweep(graph, _is_impure)
    return graph


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any]) -> fx.Node:
    copied = graph.node_copy(node, lambda n: env[n])
    copied.meta = dict(node.meta)
    if node.target is torch.ops.aten.copy.default:
        copied.target, copied.args = ops.overwrite, copied.args[:2]
    if node.target is torch.ops.aten.copy_.default and copied.args[0].op == "get_attr":  # type: ignore[union-attr]
        _mark_stored(graph, copied)
    if node.target in _VIEWS:
        copied.target = torch.ops.aten.reshape.default  # strides may change with the sizes
    if node.target is torch.ops.aten.view_as_complex.default:
        copied.target = ops.as_complex
    return copied


def _mark_stored(graph: fx.Graph, write: fx.Node) -> None:
    """What goes into a buffer; what was read from it before is a copy, which backward passes may need."""
    buffer, value = write.args[:2]
    if not isinstance(value, fx.Node) or not isinstance(buffer, fx.Node):
        return
    with graph.inserting_before(write):
        marked = graph.call_function(ops.stored, (value, buffer))
    with graph.inserting_after(buffer):
        read = graph.call_function(torch.ops.aten.clone.default, (buffer,))
    marked.meta, read.meta = dict(value.meta), dict(buffer.meta)
    buffer.replace_all_uses_with(read, lambda user: user not in (marked, read, write))
    write.args = (buffer, marked, *write.args[2:])


def _is_check(node: fx.Node) -> bool:
    if node.op == "call_module":
        return node.target == "_guards_fn"
    return node.op == "call_function" and any(a in str(node.target) for a in _ASSERTIONS)


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or (node.op == "call_function" and node.is_impure())


def _region(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """The submodule that a higher-order operator runs once, if ``node`` is one that can be inlined."""
    target = node.target
    if not isinstance(target, torch._ops.HigherOrderOperator) or "wrap_with" not in str(target):
        return None
    inner = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
    return getattr(module, str(inner[0].target)) if inner else None


def _held(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any]) -> None:
    """The check of a condition, with the line of the user that relied on it."""
    if isinstance(node.args[0], fx.Node):  # the others are known to hold
        if is_drawn(node):
            raise CaptureError(f"a branch depends on random numbers, at {source_line(node)}")
        if _is_exact(node.args[0]):
            raise CaptureError(f"no other call reads the same real number, at {source_line(node)}")
        checked = graph.call_function(ops.held, (env[node.args[0]], source_line(node)))
        checked.meta = {k: v for k, v in node.meta.items() if k != "val"}


def _is_exact(condition: fx.Node) -> bool:
    """Whether a real number has to be what it was, to the last bit, as after ``float(x.sum().item())``."""
    values = [n.meta.get("val") for n in condition.all_input_nodes]
    return condition.target is operator.eq and any(isinstance(v, torch.SymFloat) for v in values)


def is_drawn(node: fx.Node) -> bool:
    """Whether a value depends on random numbers: no two calls would go the same way."""
    todo = [node]
    seen = set(todo)
    while todo:
        current = todo.pop()
        if _draws(current):
            return True
        todo += [n for n in current.all_input_nodes if n not in seen]
        seen.update(current.all_input_nodes)
    return False


def _draws(node: fx.Node) -> bool:
    """Whether an operator takes random numbers; a dropout that is off takes none."""
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    off = "dropout" in str(node.target) and False in (*node.args[2:3], node.kwargs.get("train"))
    return seeded and not off


def _inline(
    graph: fx.Graph, node: fx.Node, region: fx.GraphModule, env: dict[fx.Node, Any], followed: bool
) -> Any:
    position = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    settings, operands = node.args[:position], node.args[position + 1 :]
    autocast = "autocast" in str(node.target)
    state = (
        graph.call_function(torch.amp.autocast_mode._enter_autocast, tuple(settings)) if autocast else None
    )
    inner: dict[fx.Node, Any] = {}
    inputs = iter(operands)
    out: Any = None
    for sub in normalise(region, followed).nodes:
        if sub.op == "placeholder":
            inner[sub] = env[next(inputs)]  # type: ignore[index]
        elif sub.op == "output":
            out = sub.args[0]
        else:
            inner[sub] = _copy(graph, sub, inner)
            if not autocast:
                inner[sub].meta.setdefault("apart", node)
    if state is not None:
        graph.call_function(torch.amp.autocast_mode._exit_autocast, (state,))
    elif settings and settings[0] is False:
        return fx.map_arg(out, lambda n: inner[n] if _is_given(n) else _detached(inner[n]))
    return fx.map_arg(out, lambda n: inner[n])


def _is_given(node: fx.Node) -> bool:
    """Whether a value of a region is the very tensor that came in: a cast to its own type returns it.

    Its gradients are those that it had outside. Tracing renames such a tensor, and later code reads it from
    the region.
    """
    while node.target is torch.ops.aten.to.dtype and len(node.args) == 2:
        source: Any = node.args[0]
        if node.meta["val"].dtype != source.meta["val"].dtype:
            return False
        node = source
    return node.op == "placeholder"


def _detached(node: fx.Node) -> fx.Node:
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return node
    detached = node.graph.call_function(torch.ops.aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program in which every write makes a new value: traced anew, where it cannot be had otherwise."""
    _detach_regions(exported.graph_module)
    return exported.run_decompositions({})  # type: ignore[no-any-return]


def _detach_regions(module: fx.GraphModule) -> None:
    """Write down, in place, that nothing is learnt through regions without gradients.

    Decompositions take the regions apart, and would let gradients pass.
    """
    for part in [m for m in module.modules() if isinstance(m, fx.GraphModule)]:
        for node in part.graph.nodes:
            region = _region(part, node)
            if region is None or node.args[0] is not False or "grad" not in str(node.target):
                continue
            out = region.graph.output_node()
            with region.graph.inserting_before(out):
                out.args = (fx.map_arg(out.args[0], lambda n: n if _is_given(n) else _detached(n)),)
            region.recompile()


def writes_through_views(graph: fx.Graph) -> bool:
    """Whether an in-place operator changes memory that is also read under another name."""
    return any(_shared_target(n) for n in graph.nodes if n.op == "call_function")


def writes(node: fx.Node) -> bool:
    """Whether an operator changes the values of its first argument in place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.args:
        return False
    return target._schema.is_mutable and target is not torch.ops.aten.detach_.default


def _shared_target(node: fx.Node) -> bool:
    if not writes(node):
        return False
    written = node.args[0]
    if not isinstance(written, fx.Node) or written.op == "placeholder":
        return isinstance(written, fx.Node)
    made = written.target
    views = _is_view(made)
    return len(written.users) > 1 or (views and not _detached_alone(written))


def _is_view(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and any(r.alias_info for r in target._schema.returns)


def _detached_alone(node: fx.Node) -> bool:
    """Whether a value comes without gradients from memory that nothing else reads.

    What is written there has its gradients; the functional form would detach it as well.
    """
    module: Any = node.graph.owning_module
    without_gradients = False
    while sum(not _is_check(user) for user in node.users) == 1:
        without_gradients |= node.target is torch.ops.aten.detach.default
        source: Any = node.args[0] if node.args else None
        if node.target is operator.getitem and (region := _region(module, source)) is not None:
            without_gradients |= source.args[0] is False
            results: Any = region.graph.output_node().args[0]
            module, node = region, results[node.args[1]]
            if results.count(node) > 1:
                return False
        elif _is_view(node.target) and isinstance(source, fx.Node) and not writes(node):
            node = source
        else:
            return without_gradients and node.op == "call_function" and not _is_view(node.target)
    return False
