"""Ballot: what one value of a graph is to a router, and how it looks in another shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.propagate import named_arguments
from ecospa_fx.passes.routing import PLAIN, short_name
from ecospa_fx.sizes import static

_LIKE_VIEWS = frozenset({"view_as", "expand_as", "reshape_as"})
LIKE = _LIKE_VIEWS | {"type_as"}
"""Of the second tensor they read the kind alone."""
COPIES = PLAIN | {"type_as"}
VIEWS = _LIKE_VIEWS | {"view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "expand"}


@dataclass(frozen=True)
class Ballot:
    """What a value is to a router.

    Attributes:
        kind: ``logits``, ``scores``, ``inner`` (the highest scores of each group), ``groups`` (a score for
            each), ``admitted`` (numbers of groups), ``mask``, ``ids``, ``counts`` or ``ends``.
        router: the product that made the logits.
        tail: sizes of the last axes, along which experts (or groups) stand.
        room: how many groups can be chosen; None for all experts, 0 where that is not known.
        keeps: of a mask, whether it is true for what was chosen.
    """

    kind: str
    router: fx.Node
    tail: tuple[int, ...] = ()
    room: int | None = None
    keeps: bool = True


@dataclass(eq=False)
class Election:
    """All that one router decides.

    Attributes:
        experts: how many there are.
        highest: nodes that take the highest scores → number of groups in which they stand, how many are
            taken, and the room (see :class:`Ballot`).
        problem: where and why no expert may go.
    """

    experts: int
    highest: dict[fx.Node, tuple[int, int, int | None]] = field(default_factory=dict)
    problem: tuple[fx.Node, str] | None = None

    def refuse(self, node: fx.Node, text: str) -> None:
        """Keep all experts; the first reason counts."""
        self.problem = self.problem or (node, text)


def viewed(ballot: Ballot, node: fx.Node) -> Ballot | None:
    """The same in another shape, where the experts still stand along the last axis, or the last two."""
    shape = tuple(map(static, node.meta["val"].shape))
    size = prod(ballot.tail)
    if _in_one_group(ballot, node, shape):
        return replace(ballot, tail=(1, size))
    if shape[-len(ballot.tail) :] == ballot.tail:
        return ballot
    if shape and shape[-1] == size:
        return replace(ballot, tail=(size,))
    two = shape[-2:]
    if None not in two and len(two) == 2 and prod(two) == size and two[-1] != 1:  # type: ignore[arg-type]
        return replace(ballot, tail=two)  # type: ignore[arg-type]
    return None


def _in_one_group(ballot: Ballot, node: fx.Node, shape: tuple[int | None, ...]) -> bool:
    """Whether scores get an axis of groups, of which there is just one."""
    before = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    added = isinstance(before, torch.Tensor) and len(shape) == before.dim() + 1
    named = short_name(node.target) in ("view", "reshape") and ballot.kind == "scores"
    return added and named and shape[-2:] == (1, *ballot.tail)


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an operator by name; None where it is left out."""
    return named_arguments(node, lambda n: n).get(name)


def axis_of(node: fx.Node) -> int:
    """The axis that an operator works along, counted from the front of its input; -1 where there is none."""
    given, value = argument(node, "dim"), node.args[0].meta.get("val")  # type: ignore[union-attr]
    if isinstance(given, (list, tuple)):
        given = given[0] if len(given) == 1 else None
    if given is None:
        given = -1 if short_name(node.target) == "topk" else None
    return given % value.dim() if isinstance(given, int) and value is not None else -1


def along_last(node: fx.Node) -> bool:
    """Whether an operator works along the last axis of its input."""
    return axis_of(node) == int(node.args[0].meta["val"].dim()) - 1  # type: ignore[union-attr]


def is_tensor(node: fx.Node) -> bool:
    """Whether a node holds one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_float(node: fx.Node) -> bool:
    """Whether a node holds one tensor of real numbers."""
    return is_tensor(node) and bool(node.meta["val"].is_floating_point())


def reads_bits(node: fx.Node, name: str) -> bool:
    """Whether numbers become others: truth values, or the bits of another type."""
    return node.meta["val"].dtype == torch.bool or (name == "view" and str(node.target).endswith(".dtype"))


def seen_mask(ballot: Ballot, node: fx.Node, name: str) -> Ballot | None:
    """A mask of groups under what is done to masks: turned over, compared with zero, widened, viewed."""
    if not is_tensor(node):
        return None
    tail = tuple(map(static, node.meta["val"].shape))
    if name in ("bitwise_not", "logical_not") and node.meta["val"].dtype == torch.bool:
        return replace(ballot, keeps=not ballot.keeps)
    if name in ("eq", "ne") and node.args[1] == 0:
        return replace(ballot, keeps=ballot.keeps == (name == "ne"))
    if name == "unsqueeze" and len(ballot.tail) == 1 and tail[-2:] == (*ballot.tail, 1):
        return replace(ballot, tail=(*ballot.tail, 1))
    if name == "expand" and ballot.tail[1:] == (1,) and tail[-2:-1] == ballot.tail[:1]:
        return replace(ballot, tail=tail[-2:])  # type: ignore[arg-type]
    times = node.args[1] if name == "repeat_interleave" and len(ballot.tail) == 1 else None
    if isinstance(times, int) and along_last(node):
        return replace(ballot, tail=(ballot.tail[0] * times,))
    if name in COPIES:
        return ballot
    return viewed(ballot, node) if name in VIEWS and ballot.tail[-1] != 1 else None
