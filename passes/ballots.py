"""Ballots: how the logits of a router become the numbers of the experts that it picks.

A forward pass over a graph, in which values stand as what they are to a router: its logits (minus infinity
for experts that are gone), scores made from them, scores of groups of experts, masks of the groups that were
chosen, numbers of experts, counts and ends of their runs. What is not known to be any of these is nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ecospa_fx.passes.ballot import (
    COPIES,
    LIKE,
    VIEWS,
    Ballot,
    Election,
    along_last,
    argument,
    axis_of,
    is_float,
    is_tensor,
    reads_bits,
    seen_mask,
    viewed,
)
from ecospa_fx.passes.normalise import writes
from ecospa_fx.passes.routing import short_name
from ecospa_fx.passes.zeros import ZEROS
from ecospa_fx.sizes import static

PRODUCTS = frozenset({"linear", "mm", "matmul", "addmm", "bmm", "baddbmm", "einsum"})
_PICKS = frozenset({"slice", "select", "index", "gather", "index_select", "repeat_interleave", "flip"})
_TURNS = frozenset({"transpose", "permute", "mT", "t", "swapaxes"})
_SIZES = frozenset(
    {"sym_size", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty"}
)
_FINITE = frozenset(
    {"sigmoid", "softmax", "tanh", "softplus", "silu", "gelu", "mul", "add", "sub", "neg", "relu"}
)
_FINITE |= frozenset({"rand", "randn", "rand_like", "randn_like", "sum", "gather", "zeros_like", "ones_like"})
_KINDS = ("logits", "scores", "inner", "groups", "mask", "admitted", "ids", "counts", "ends")
HIGHEST = frozenset({"topk", "max", "argmax", "amax"})


class Ballots:
    """Runs over a graph.

    Args:
        graph: a captured graph.

    Attributes:
        known: what each node is to a router.
        elections: by the product that makes the logits.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.known: dict[fx.Node, Ballot] = {}
        self.elections: dict[fx.Node, Election] = {}
        self._outputs: dict[fx.Node, tuple[Ballot | None, ...]] = {}
        for node in graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node.target is operator.getitem and node.args[0] in self._outputs:
            outputs = self._outputs[node.args[0]]  # type: ignore[index]
            found = outputs[node.args[1]] if node.args[1] < len(outputs) else None  # type: ignore[index,operator]
        elif node.op == "call_function":
            found = self._called(node, short_name(node.target))
        else:
            found = None
        if found is not None:
            self.known[node] = found

    def _called(self, node: fx.Node, name: str) -> Ballot | None:
        read = 1 if name in LIKE else None
        inputs = [n for n in node.all_input_nodes[:read] if n in self.known]
        if name in PRODUCTS:
            for n in inputs:
                self._spoilt(n, node)
            return self._candidate(node)
        if not inputs:
            return None
        if writes(node):
            return self._written(node, name, inputs)
        source = min(inputs, key=lambda n: _KINDS.index(self.known[n].kind))
        rule: Callable[..., Ballot | None] = getattr(self, f"_{self.known[source].kind}")
        return rule(node, name, source, self.known[source])

    def _written(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> Ballot | None:
        """A mask may be filled in place: whoever reads the blank later reads the mask."""
        if name == "scatter_" and [self._kind(n) for n in inputs] == ["admitted"]:
            mask = self._admitted(node, name, inputs[0], self.known[inputs[0]])
            if mask is not None:
                self.known[node.all_input_nodes[0]] = mask
                return mask
        for n in inputs:
            self._of(n).refuse(node, "values of a router are written in place")
        return None

    def _candidate(self, node: fx.Node) -> Ballot | None:
        value = node.meta.get("val")
        size = static(value.shape[-1]) if isinstance(value, torch.Tensor) and value.dim() > 1 else None
        if size is None or size < 2:
            return None
        self.elections[node] = Election(size)
        return Ballot("logits", node, (size,))

    def _spoilt(self, source: fx.Node, node: fx.Node) -> None:
        """Whoever reads minus infinity in another way could pass it on."""
        ballot = self.known[source]
        if ballot.kind == "logits":
            text = "what is computed here is not known to hold for experts that are gone"
            self._of(source).refuse(node, text)

    def _of(self, node: fx.Node) -> Election:
        return self.elections[self.known[node].router]

    def _logits(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        if name in _SIZES:
            return None
        if name in COPIES | VIEWS and is_float(node) and (seen := viewed(ballot, node)) is not None:
            return seen
        one = len(ballot.tail) == 1
        if name in ("softmax", "_softmax") and one and along_last(node):
            return replace(ballot, kind="scores")
        if name in ("sigmoid", "exp", "softplus"):
            return replace(ballot, kind="scores")
        if name == "log_softmax" and one and along_last(node):
            return ballot
        if name == "logsumexp" or (name == "amax" and one):
            return None
        if name in ("add", "sub", "mul", "div") and self._scaled(node, name, source):
            return viewed(ballot, node)
        found = self._compared(node, name, source, ballot)
        if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return viewed(replace(ballot, kind="scores"), node)  # refused, but still scores of this router
        return found

    def _scaled(self, node: fx.Node, name: str, source: fx.Node) -> bool:
        """Whether the other operand leaves minus infinity what it is."""
        first = node.args[0] is source
        other = node.args[1] if first else node.args[0]
        if not first and (name in ("sub", "div") or node.kwargs.get("alpha", 1) != 1):
            return False
        if name in ("mul", "div"):
            return isinstance(other, (int, float)) and other > 0
        return not isinstance(other, fx.Node) or self._finite(other)

    def _finite(self, node: fx.Node, depth: int = 12) -> bool:
        ballot = self.known.get(node)
        if ballot is not None and ballot.kind == "logits":
            self._spoilt(node, node)
            return True
        name = short_name(node.target) if node.op == "call_function" else node.op
        if name == "getitem":
            node = node.args[0]  # type: ignore[assignment]
            name = short_name(node.target)
        if name in ("get_attr", "amax", "max") or name in PRODUCTS:
            return True
        through = name in _FINITE | COPIES | VIEWS | _PICKS and depth > 0
        return through and all(self._finite(n, depth - 1) for n in node.all_input_nodes if is_float(n))

    def _scores(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        if name in COPIES | VIEWS:
            return viewed(ballot, node) if is_float(node) else None
        if name in ("softmax", "_softmax", "log_softmax"):
            self.elections[ballot.router].refuse(node, "a second softmax sees experts that are gone")
            return viewed(ballot, node)
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) and name not in ("masked_fill", "where"):
            others = [n for n in node.all_input_nodes if n is not source and is_float(n)]
            room = ballot.room if all(self._finite(n) for n in others) else 0
            seen = viewed(ballot, node)
            return None if seen is None else replace(seen, room=room)
        return self._compared(node, name, source, ballot)

    def _compared(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        """Scores and logits alike: masked, or the highest of them taken."""
        if node.args[0] is source and name == "masked_fill":
            return self._masked(node, ballot)
        if (
            node.args[0] is source
            and name in HIGHEST
            and along_last(node)
            and argument(node, "largest") is not False
        ):
            return self._elected(node, name, ballot)
        if name == "gather" and node.args[0] is source and self._kind(node.args[2]) == "ids":
            return None
        self._spoilt(source, node)
        return None

    def _kind(self, node: Any) -> str:
        return self.known[node].kind if node in self.known else ""

    def _masked(self, node: fx.Node, ballot: Ballot) -> Ballot | None:
        """A mask that is not known leaves no proof of how many experts are left to choose from."""
        value, mask = node.args[2], self.known.get(node.args[1])  # type: ignore[arg-type]
        dtype = node.meta["val"].dtype
        lowest = isinstance(value, (int, float)) and value <= torch.finfo(dtype).min
        if not lowest:
            if ballot.kind == "logits" or not isinstance(value, (int, float)):
                self.elections[ballot.router].refuse(node, "logits of experts are replaced here")
            return ballot
        proved = (
            mask is not None and mask.kind == "mask" and not mask.keeps and mask.router is ballot.router
            and mask.tail == ballot.tail and ballot.room is None
        )  # fmt: skip
        return replace(ballot, room=mask.room if proved and mask is not None else 0)

    def _elected(self, node: fx.Node, name: str, ballot: Ballot) -> Ballot | None:
        parts = ballot.tail[0] if len(ballot.tail) > 1 else 1
        count = argument(node, "k") if name == "topk" else 1
        election = self.elections[ballot.router]
        if not isinstance(count, int):
            election.refuse(node, "how many experts are taken is not known")
            return None
        election.highest[node] = (parts, count, ballot.room)
        if len(ballot.tail) > 1:
            inner = replace(ballot, kind="inner" if name == "topk" else "groups", tail=ballot.tail[:1])
            if name == "amax":
                return inner
            self._outputs[node] = (inner, None)
            return None
        ids = Ballot("ids", ballot.router)
        if name == "argmax":
            return ids
        self._outputs[node] = (None, ids)
        return None

    def _inner(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        keepdim = argument(node, "keepdim")
        made = name in ("sum", "mean", "amax") and along_last(node) and not keepdim
        return replace(ballot, kind="groups") if made else None

    def _groups(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        if name == "topk" and along_last(node) and argument(node, "largest") is not False:
            count = argument(node, "k")
            if isinstance(count, int):
                self._outputs[node] = (None, replace(ballot, kind="admitted", room=count))
        return None

    def _admitted(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        """Numbers of groups: a mask, once written at their places."""
        if (
            name not in ("scatter", "scatter_")
            or node.args[2] is not source
            or axis_of(node) != node.meta["val"].dim() - 1
        ):
            return None
        blank, value = short_name(node.args[0].target), node.args[3] if len(node.args) > 3 else None  # type: ignore[union-attr]
        marked = isinstance(value, (int, float)) and value != 0
        return replace(ballot, kind="mask") if marked and blank in ZEROS else None

    def _mask(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        return seen_mask(ballot, node, name)

    def _ids(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        """Numbers stay numbers wherever they go."""
        plain = Ballot("ids", ballot.router)
        if node.args[0] is not source or not is_tensor(node):
            if node.args[0] is source and name == "sort":
                self._outputs[node] = (plain, None)
            return None
        if name in ("histc", "bincount"):
            return self._counted(node, name, ballot)
        if (
            name in ("clamp", "clamp_max")
            and argument(node, "max") == self.elections[ballot.router].experts - 1
        ):
            return plain if (argument(node, "min") or 0) <= 0 else None
        if name in COPIES | VIEWS and not reads_bits(node, name):
            return plain
        return plain if name in _PICKS | _TURNS else None

    def _counted(self, node: fx.Node, name: str, ballot: Ballot) -> Ballot | None:
        experts, shape = self.elections[ballot.router].experts, node.meta["val"].shape
        if name == "histc":
            given = [argument(node, k) for k in ("bins", "min", "max")]
            return Ballot("counts", ballot.router) if given == [experts, 0, experts - 1] else None
        return Ballot("counts", ballot.router) if static(shape[0]) == experts else None

    def _counts(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        if name in COPIES:
            return ballot
        return replace(ballot, kind="ends") if name == "cumsum" and axis_of(node) == 0 else None

    def _ends(self, node: fx.Node, name: str, source: fx.Node, ballot: Ballot) -> Ballot | None:
        return ballot if name in COPIES else None
