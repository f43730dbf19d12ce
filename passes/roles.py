"""Roles: units of attention that no product of two activations gives away.

Scores are products of queries with keys, and weigh values once a softmax has made them weights. Mostly both
factors are activations, and a contraction alone shows what it is. Where the queries are learnt (attention
pooling, latents), or a head's matrix stands between keys and scores (absorbed latent attention), it looks
like any product with a weight: here the way from each softmax back to its scores tells. A contraction
may also be written as a product entry by entry, and a sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import fx

from ecospa_fx.labels import Ids, Nature, Tag, Value
from ecospa_fx.passes.routing import short_name
from ecospa_fx.passes.unfuse import moved
from ecospa_fx.program import Analysis
from ecospa_fx.rules.call import Call, Join, item
from ecospa_fx.rules.reductions import axes_of
from ecospa_fx.rules.views import groups

_KNOWN = Tag.DOT | Tag.VALUE | Tag.NONLINEAR | Tag.CONV | Tag.HEAD | Tag.EXPERT
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
_VIEWS = frozenset({"view", "reshape", "_unsafe_view", "unflatten", "flatten", "squeeze", "unsqueeze"})
_ENTRYWISE = frozenset({"add", "sub", "mul", "div", "masked_fill", "where", "tanh", "clamp", "neg"})
_NONE: Ids = np.zeros(0, np.int64)
_SAME = frozenset({"slice", "dropout", "expand", "contiguous", "clone", "to", "_to_copy"})

Place = tuple[fx.Node, int]


def attention_roles(analysis: Analysis) -> tuple[Ids, Ids]:
    """Components that only serve scores, and those that only serve values.

    Returns:
        Components for ``qk``, and components for ``vo``; what only weights tell of has no kind already.
    """
    return _Roles(analysis).run()


class _Roles:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.component, self.tags = analysis.partition.component, analysis.partition.tags
        self.scores: set[fx.Node] = set()

    def run(self) -> tuple[Ids, Ids]:
        dots, values, dotted, carried = ([_NONE] for _ in range(4))
        for node in self.analysis.program.graph.nodes:
            if short_name(node.target) in _SOFTMAX and node in self.analysis.calls:
                dots += self._scored(node, self.analysis.calls[node].axis())
            ended, beside = self._dotted(node)
            dotted += ended
            carried += beside
            values += self._carried(node) + self._pooled(node)
        found = self._nameless(dots)
        found = np.setdiff1d(found, self._summed_elsewhere()) if len(found) else found
        by_hand = np.concatenate(dotted)
        # What is left of values after a projection onto themselves are values still.
        by_hand = by_hand[(self.tags[by_hand] & int(Tag.VALUE)) == 0]
        return np.union1d(found, by_hand), np.union1d(self._nameless(values), np.concatenate(carried))

    def _nameless(self, found: list[Ids]) -> Ids:
        components = np.unique(np.concatenate(found))
        return np.asarray(components[(self.tags[components] & int(_KNOWN)) == 0])

    def _scored(self, node: fx.Node, axis: int) -> list[Ids]:
        """What is summed over on the way to a softmax along places that an activation has brought."""
        found = []
        for source, at in self._products((node, axis)):
            call, join = self.analysis.calls[source], _contraction(self.analysis.calls[source])
            having = [v for v, axes in self._operands(call, join) if at in axes]
            if having and all(v.nature == Nature.ACTIVATION for v in having):
                self.scores.add(source)
                found += [self._sum(call, join), *self._absorbed(source, join)]
        return found

    def _absorbed(self, node: fx.Node, join: Join | None) -> list[Ids]:
        """What a head's own matrix sums over, whose result is a factor of scores."""
        found = []
        for source in node.all_input_nodes:
            for before, _ in self._products((source, 0), start=True):
                call, inner = self.analysis.calls[before], _contraction(self.analysis.calls[before])
                if self._by_head(call, inner):
                    self.scores.add(before)
                    found.append(self._sum(call, inner))
        return found

    def _carried(self, node: fx.Node) -> list[Ids]:
        """What a head's own matrix makes of values that weights have mixed."""
        call = self.analysis.calls.get(node)
        join = _contraction(call) if call is not None else None
        if call is None or join is None or not self._by_head(call, join):
            return []
        mixed = False
        for source in node.all_input_nodes:
            for before, _ in self._products((source, 0), start=True):
                other = self.analysis.calls[before]
                both = [v.nature for v, _ in self._operands(other, _contraction(other))]
                mixed |= all(n == Nature.ACTIVATION for n in both)
        weights = [axes for v, axes in self._operands(call, join) if v.nature < Nature.ACTIVATION]
        others = {a for v, axes in self._operands(call, join) if v.nature == Nature.ACTIVATION for a in axes}
        free = {a for axes in weights for a in axes if a < call.out.rank} - others
        return self._components(call.out, free) if mixed else []

    def _dotted(self, node: fx.Node) -> tuple[list[Ids], list[Ids]]:
        """What a sum ends in a product of two activations that both have it, and what one has alone."""
        product = _summed_product(node)
        both = self._factors(product) if product is not None else []
        if len(both) < 2:
            return [], []
        axes = set(axes_of(self.analysis.calls[node]))
        sets = [np.concatenate([_NONE, *self._components(f, axes)]) for f in both]
        dots: Ids = np.intersect1d(sets[0], sets[1])
        alone = [{i for i, n in enumerate(g.shape) if n == 1} - axes for g in reversed(both)]
        carried = [c for f, free in zip(both, alone, strict=True) for c in self._components(f, free)]
        return ([dots], carried) if len(dots) else ([], [])

    def _factors(self, product: fx.Node) -> list[Value]:
        """The activations of full rank that a product multiplies."""
        rank = self.analysis.values[product].rank
        found = [self.analysis.values.get(n) for n in product.args[:2] if isinstance(n, fx.Node)]
        values = [f for f in found if isinstance(f, Value)]
        return [f for f in values if f.nature == Nature.ACTIVATION and f.rank == rank]

    def _pooled(self, node: fx.Node) -> list[Ids]:
        """What a sum over places keeps of a product with the weights of a softmax over these places."""
        product = _summed_product(node)
        if product is None:
            return []
        summed = set(axes_of(self.analysis.calls[node]))
        if not any(self._weighs(source) for axis in summed for source in self._before((product, axis))):
            return []
        out = self.analysis.values[node]
        return self._components(out, set(range(out.rank)))

    def _weighs(self, place: Place) -> bool:
        """Whether a softmax ran along the axis of ``place``."""
        waiting = [place]
        while waiting:
            node, at = waiting.pop()
            call = self.analysis.calls.get(node)
            if call is None or _contraction(call) is not None:
                continue
            if short_name(node.target) in _SOFTMAX:
                return call.axis() == at
            waiting += self._before((node, at))
        return False

    def _by_head(self, call: Call, join: Join | None) -> bool:
        """Whether an activation and a weight share an axis that is not summed over."""
        operands = self._operands(call, join)
        natures = sorted(v.nature for v, _ in operands)
        if len(operands) != 2 or natures[1] != Nature.ACTIVATION or natures[0] == Nature.ACTIVATION:
            return False
        shared = set(operands[0][1]) & set(operands[1][1])
        return any(a < call.out.rank and call.out.shape[a] > 1 for a in shared)

    def _operands(self, call: Call, join: Join | None) -> list[tuple[Value, tuple[int, ...]]]:
        return [(item(call.args, name), axes) for name, axes in join.operands] if join is not None else []

    def _sum(self, call: Call, join: Join | None) -> Ids:
        """Components that a contraction sums over."""
        found = [_NONE]
        for value, axes in self._operands(call, join):
            found += self._components(value, {i for i, a in enumerate(axes) if a >= call.out.rank})
        return np.unique(np.concatenate(found))

    def _components(self, value: Value, axes: set[int]) -> list[Ids]:
        return [self.component[a.ids].ravel() for a in value.arrays if value.inner(a) in axes]

    def _summed_elsewhere(self) -> Ids:
        """What products sum over that are no scores."""
        found = [_NONE]
        for node, call in self.analysis.calls.items():
            join = _contraction(call)
            if join is not None and node not in self.scores:
                found.append(self._sum(call, join))
        return np.unique(np.concatenate(found))

    def _products(self, place: Place, start: bool = False) -> Iterator[Place]:
        """Contractions whose results reach ``place`` as they are, and where its axis is in them."""
        waiting = [place] if start else list(self._before(place))
        seen: set[Place] = set()
        while waiting:
            node, axis = waiting.pop()
            if (node, axis) in seen or node not in self.analysis.calls:
                continue
            seen.add((node, axis))
            if _contraction(self.analysis.calls[node]) is not None:
                yield node, axis
            else:
                waiting += self._before((node, axis))

    def _before(self, place: Place) -> Iterator[Place]:
        """The same entries one operator earlier."""
        node, axis = place
        name = short_name(node.target)
        sources = [n for n in node.all_input_nodes if isinstance(self.analysis.values.get(n), Value)]
        out = self.analysis.values[node]
        for source in sources if name in _ENTRYWISE | _SOFTMAX else sources[:1]:
            value = self.analysis.values[source]
            if name in _ENTRYWISE | _SOFTMAX | _SAME:
                at = axis - (out.rank - value.rank)
                if at >= 0 and value.shape[at] == out.shape[axis]:
                    yield source, at
            elif name in _VIEWS:
                yield from ((source, ins[0]) for ins, outs in groups(value.shape, out.shape)
                            if ins and axis in outs and sum(value.shape[i] > 1 for i in ins) < 2)  # fmt: skip
            else:
                yield from ((source, i) for i in range(value.rank) if moved(node, i) == axis)


def _contraction(call: Call) -> Join | None:
    """How the operands of a sum of products meet."""
    return next((j for j in call.joins if not j.gather and all(name for name, _ in j.operands)), None)


def _summed_product(node: fx.Node) -> fx.Node | None:
    """The product, entry by entry, that ``node`` sums over some axes."""
    product = node.args[0] if node.args and short_name(node.target) == "sum" else None
    return product if isinstance(product, fx.Node) and short_name(product.target) == "mul" else None
