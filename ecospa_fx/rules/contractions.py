"""Sums of products: linear layers, matrix products, einsum, convolutions and embeddings."""

from __future__ import annotations

from dataclasses import replace

from ecospa_fx.labels import LabelArray, Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.meet import both, contract, meet
from ecospa_fx.rules.registry import rule

SPECS = {
    "aten.mm.default": ("ij,jk->ik", "self", "mat2"),
    "aten.bmm.default": ("bij,bjk->bik", "self", "mat2"),
    "aten.mv.default": ("ij,j->i", "self", "vec"),
    "aten.dot.default": ("i,i->", "self", "tensor"),
    "aten.outer.default": ("i,j->ij", "self", "vec2"),
}


@rule(*SPECS)
def product(call: Call) -> Arrays:
    """Matrix products of fixed rank."""
    spec, left, right = SPECS[call.target]
    return contract(call, spec, (left, call.value(left)), (right, call.value(right)))


@rule("aten.matmul.default")
def matmul(call: Call) -> Arrays:
    """Batched matrix product; vectors lose their axis."""
    a, b = call.value("self"), call.value("other")
    left = "j" if a.rank == 1 else "...ij"
    right = "j" if b.rank == 1 else "...jk"
    out = "..." + ("i" if a.rank > 1 else "") + ("k" if b.rank > 1 else "")
    return contract(call, f"{left},{right}->{out if a.rank + b.rank > 2 else ''}", ("self", a), ("other", b))


def plus(call: Call, arrays: Arrays, name: str, axes: tuple[int, ...] | None = None) -> Arrays:
    """Add the argument ``name`` (a bias) to a result that carries ``arrays``."""
    other = call.get(name)
    if not isinstance(other, Value):
        return arrays
    rank = call.out.rank
    result = replace(call.out, arrays=arrays)
    where = axes if axes is not None else tuple(range(rank - other.rank, rank))
    return meet(call, call.out.shape, [("", result, tuple(range(rank))), (name, other, where)], both)


@rule("aten.linear.default")
def linear(call: Call) -> Arrays:
    """``x @ W.T + b``: the paper's weight matrices."""
    x, w = call.value("input"), call.value("weight")
    spec = "...i,oi->...o" if w.rank == 2 else "...i,i->..."
    return plus(call, contract(call, spec, ("input", x), ("weight", w)), "bias")


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addbmm.default")
def addmm(call: Call) -> Arrays:
    """``beta * self + alpha * a @ b``."""
    left, right = ("mat1", "mat2") if "mat1" in call.args else ("batch1", "batch2")
    spec = "ij,jk->ik" if left == "mat1" else "bij,bjk->bik" if "baddbmm" in call.target else "bij,bjk->ik"
    arrays = contract(call, spec, (left, call.value(left)), (right, call.value(right)))
    return plus(call, arrays, "self")


@rule("aten.einsum.default")
def einsum(call: Call) -> Arrays:
    """Two operands with distinct indices, or one that is only permuted or summed."""
    operands = call.args["tensors"]
    equation = call.args["equation"].replace(" ", "")
    if "->" not in equation:
        letters = sorted(set(equation) - set(",."))
        once = [c for c in letters if equation.count(c) == 1]
        equation += "->" + ("..." if "..." in equation else "") + "".join(once)
    terms = equation.split("->")[0].split(",")
    repeated = any(len(set(t.replace(".", ""))) != len(t.replace(".", "")) for t in terms)
    if repeated or len(operands) > 2:
        call.pin(
            (a for v in operands for a in v.arrays), "einsum over a diagonal or over more than two operands"
        )
        return ()
    if len(operands) == 1:
        unit = Value((), (), (), operands[0].nature)
        left, right = equation.split("->")
        return contract(call, f"{left},->{right}", ("tensors[0]", operands[0]), ("", unit))
    return contract(call, equation, ("tensors[0]", operands[0]), ("tensors[1]", operands[1]))


@rule("aten.embedding.default")
def embedding(call: Call) -> Arrays:
    """Rows of a table; the table's first axis (the vocabulary) stays."""
    weight, indices = call.value("weight"), call.value("indices")
    call.pin(weight.on(0), "rows of an embedding are looked up by number")
    call.pin(indices.arrays, "used as indices")
    arrays = [a for a in weight.arrays if 0 not in a.axes]
    return tuple(LabelArray(a.ids.reshape((1,) * indices.rank + a.ids.shape[1:]), a.zero) for a in arrays)
