"""Sums of products: linear layers, matrix products, einsum, convolutions and embeddings."""

from __future__ import annotations

from dataclasses import replace

from ecospa_fx.labels import LabelArray, Nature, Value
from ecospa_fx.rules.call import Arrays, Call, arrays_of, unzeroed
from ecospa_fx.rules.meet import both, broadcast, contract, either, meet, operand, reduce_arrays
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

SPECS = {
    "aten.mm.default": ("ij,jk->ik", "self", "mat2"),
    "aten.bmm.default": ("bij,bjk->bik", "self", "mat2"),
    "aten.mv.default": ("ij,j->i", "self", "vec"),
    "aten.dot.default": ("i,i->", "self", "tensor"),
    "aten.outer.default": ("i,j->ij", "self", "vec2"),
    "aten.vdot.default": ("i,i->", "self", "other"),
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


@rule("aten.inner.default", "aten.tensordot.default")
def tensordot(call: Call) -> Arrays:
    """A sum over some axes of both; the others stand one after another."""
    a, b = call.value("self"), call.value("other")
    over_a, over_b = call.get("dims_self", [-1]), call.get("dims_other", [-1])
    if not a.rank or not b.rank:
        return call.refuse("a product with a single number")
    left, right = [chr(97 + i) for i in range(a.rank)], [chr(65 + i) for i in range(b.rank)]
    for i, j in zip(over_a, over_b, strict=True):
        right[j] = left[i]
    out = [c for c in left if c not in right] + [c for c in right if c not in left]
    return contract(call, f"{''.join(left)},{''.join(right)}->{''.join(out)}", ("self", a), ("other", b))


@rule("aten.bilinear.default")
def bilinear(call: Call) -> Arrays:
    """``x1 @ W[o] @ x2`` for every output."""
    w, x = call.value("weight"), call.value("input2")
    half = contract(call, "...i,oij->...oj", ("input1", call.value("input1")), ("weight", w))
    shape = (*x.shape[:-1], w.shape[0], w.shape[2])
    middle = Value(shape, (*x.symbolic[:-1], False, False), half, Nature.ACTIVATION)
    return plus(call, contract(call, "...oj,...j->...o", ("", middle), ("input2", x)), "bias")


@rule("aten.linalg_vecdot.default", "aten.cosine_similarity.default")
def vecdot(call: Call) -> Arrays:
    """A sum along one axis of products; a cosine divides by norms, which dead entries do not change."""
    names = ("x", "y") if "x" in call.args else ("x1", "x2")
    cosine = "cosine" in call.target
    sizes, operands = broadcast(call, *names)
    axis = int(call.get("dim", 1 if cosine else -1)) % len(sizes)
    arrays = meet(call, sizes, operands, both if cosine else either, gather=False)
    return reduce_arrays(call, arrays, {axis})


@rule("aten.cdist.default", "aten._cdist_forward.default")
def cdist(call: Call) -> Arrays:
    """Distances between all rows: entries that are zero in both add nothing."""
    a, b, order = call.value("x1"), call.value("x2"), call.get("p", 2)
    if not order > 0:
        return call.refuse("a norm that counts zeros")
    arrays = contract(call, "...pm,...rm->...pr", ("x1", a), ("x2", b), both)
    return unzeroed(arrays)


@rule("aten.pairwise_distance.default")
def pairwise_distance(call: Call) -> Arrays:
    """A small number is added to every difference before they are summed, so none of them may go."""
    rank = max(call.value(n).rank for n in ("x1", "x2"))
    operands = []
    for name in ("x1", "x2"):
        x = call.value(name)
        free = spared(
            call, x, [x.rank - 1], "every entry adds a small number to the distance", keep_zero=False
        )
        operands.append(operand(name, replace(x, arrays=free), rank))
    shape = (*call.out.shape, 1) if not call.get("keepdim") else call.out.shape
    arrays = meet(call, shape, operands, both)
    return arrays if call.get("keepdim") else tuple(LabelArray(x.ids[..., 0], False) for x in arrays)


@rule("aten.addmv.default", "aten.addr.default")
def addmv(call: Call) -> Arrays:
    """``beta * self + alpha * a @ b`` for vectors."""
    spec, left, right = ("ij,j->i", "mat", "vec") if "mat" in call.args else ("i,j->ij", "vec1", "vec2")
    return plus(call, contract(call, spec, (left, call.value(left)), (right, call.value(right))), "self")


@rule("aten.linalg_multi_dot.default")
def multi_dot(call: Call) -> Arrays:
    """A chain of matrix products."""
    tensors: list[Value] = call.args["tensors"]
    name, current = "tensors[0]", tensors[0]
    for i, other in enumerate(tensors[1:], 1):
        left, right = "ij"[2 - current.rank :], "jk"[: other.rank]
        out = left[:-1] + right[1:]
        arrays = contract(call, f"{left},{right}->{out}", (name, current), (f"tensors[{i}]", other))
        shape = (*current.shape[:-1], *other.shape[1:])
        symbolic = (*current.symbolic[:-1], *other.symbolic[1:])
        name, current = "", Value(shape, symbolic, arrays, max(current.nature, other.nature))
    return current.arrays


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
        return call.refuse("einsum over a diagonal or over more than two operands")
    if len(operands) == 1:
        unit = Value((), (), (), operands[0].nature)
        left, right = equation.split("->")
        return contract(call, f"{left},->{right}", ("tensors[0]", operands[0]), ("", unit))
    return contract(call, equation, ("tensors[0]", operands[0]), ("tensors[1]", operands[1]))


@rule("aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def embedding_bag(call: Call) -> list[Arrays]:
    """Rows of a table, reduced bag by bag; where the largest lie is told for each feature."""
    weight, others = call.value("weight"), ("indices", "offsets", "per_sample_weights")
    call.pin(weight.on(0), "rows of an embedding are looked up by number")
    call.pin(arrays_of([call.get(n) for n in others]), "used as indices")
    arrays = tuple(a for a in weight.arrays if 0 not in a.axes)
    places = unzeroed(arrays)
    return [arrays, *(places if o.rank == 2 and o.shape == call.out.shape else () for o in call.outputs[1:])]


@rule("aten.embedding.default")
def embedding(call: Call) -> Arrays:
    """Rows of a table; the table's first axis (the vocabulary) stays."""
    weight, indices = call.value("weight"), call.value("indices")
    call.pin(weight.on(0), "rows of an embedding are looked up by number")
    call.pin(indices.arrays, "used as indices")
    arrays = [a for a in weight.arrays if 0 not in a.axes]
    return tuple(LabelArray(a.ids.reshape((1,) * indices.rank + a.ids.shape[1:]), a.zero) for a in arrays)
