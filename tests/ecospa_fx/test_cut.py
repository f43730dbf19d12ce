"""A cut against boolean indexing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import RewriteError

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def bools(size: int) -> st.SearchStrategy[torch.Tensor]:
    return st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)


def box(vectors: list[torch.Tensor]) -> torch.Tensor:
    kept = torch.tensor(True)
    for vector in vectors:
        kept = kept[..., None] & vector
    return kept


@st.composite
def product_cuts(draw: st.DrawFn) -> ParameterCut:
    vectors = [draw(bools(size)) for size in draw(SHAPES)]
    return ParameterCut(box(vectors), tuple(int(vector.sum()) for vector in vectors))


@st.composite
def expert_cuts(draw: st.DrawFn) -> ParameterCut:
    """Some experts go, the others keep equally many rows and columns, each its own."""
    experts, rows, columns = (draw(st.integers(1, 5)) for _ in range(3))
    n, m = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    alive = draw(bools(experts).filter(lambda vector: bool(vector.any())))
    slices = [
        box([torch.isin(torch.arange(size), torch.tensor(draw(st.permutations(range(size)))[:left]))
             for size, left in ((rows, n), (columns, m))]) & here
        for here in alive
    ]  # fmt: skip
    return ParameterCut(torch.stack(slices), (int(alive.sum()), n, m))


@st.composite
def head_cuts(draw: st.DrawFn) -> ParameterCut:
    """Matrices along a later axis, each with indices of its own behind it."""
    cut, before = draw(expert_cuts()), draw(bools(3).filter(lambda vector: bool(vector.any())))
    kept = cut.kept[None] & before[:, None, None, None]
    return ParameterCut(kept, (int(before.sum()), *cut.new_shape), rows=1)


CUTS = st.one_of(product_cuts(), expert_cuts(), head_cuts())


@given(CUTS)
def test_apply_is_boolean_indexing(cut: ParameterCut) -> None:
    tensor = torch.randn(cut.old_shape)
    small = cut.apply(tensor)
    assert torch.equal(small, tensor[cut.kept].reshape(cut.new_shape))
    assert small.is_contiguous()
    assert small.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not tensor.numel()


@given(CUTS)
def test_join_undoes_split(cut: ParameterCut) -> None:
    tensor = torch.randn(cut.old_shape)
    small, removed = cut.split(tensor)
    assert torch.equal(small, cut.apply(tensor))
    assert small.numel() + sum(part.numel() for part in removed) == tensor.numel()
    assert torch.equal(cut.join(small, removed), tensor)
    assert torch.equal(cut.join(small, removed), tensor)  # the parts are not used up


@given(CUTS)
def test_scatter_leaves_zeros(cut: ParameterCut) -> None:
    tensor = torch.randn(cut.old_shape)
    assert torch.equal(cut.scatter(cut.apply(tensor)), tensor * cut.kept)


@given(CUTS)
def test_axis_kept_is_any_over_the_rest(cut: ParameterCut) -> None:
    for axis in range(cut.kept.dim()):
        assert cut.axis_kept(axis).tolist() == [bool(part.any()) for part in cut.kept.unbind(axis)]
        assert torch.equal(cut.axis_kept(axis), cut.axis_kept(axis - cut.kept.dim()))


@given(product_cuts().filter(lambda cut: cut.kept.any()), st.data())
def test_collapse_cuts_a_broadcast_tensor(cut: ParameterCut, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, cut.kept.dim() - 1))
    tensor = torch.randn([1 if other == axis else size for other, size in enumerate(cut.old_shape)])
    expanded = cut.apply(tensor.expand(cut.old_shape))
    assert torch.equal(cut.collapse(axis).apply(tensor).expand(cut.new_shape), expanded)


@given(st.lists(st.integers(1, 3), min_size=2, max_size=3), st.data())
def test_any_mask_is_cut_right_or_refused(shape: list[int], data: st.DataObject) -> None:
    kept = torch.stack([data.draw(bools(shape[-1])) for _ in range(int(torch.tensor(shape[:-1]).prod()))])
    kept = kept.reshape(shape)
    new_shape = tuple(data.draw(st.integers(0, size)) for size in shape)
    tensor = torch.randn(shape)
    try:
        small = ParameterCut(kept, new_shape).apply(tensor)
    except RewriteError:
        return
    assert torch.equal(small, tensor[kept].reshape(new_shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_dtype_stays(dtype: torch.dtype) -> None:
    cut = ParameterCut(box([torch.tensor([True, False]), torch.tensor([True, True, False])]), (1, 2))
    tensor = torch.ones(2, 3).to(dtype)
    assert cut.apply(tensor).dtype is dtype
    assert torch.equal(cut.join(*cut.split(tensor)), tensor)


def test_device_stays() -> None:
    cut = ParameterCut(box([torch.tensor([True, False]), torch.ones(3, dtype=torch.bool)]), (1, 3))
    assert cut.apply(torch.empty(2, 3, device="meta")).is_meta
    assert cut.join(*cut.split(torch.empty(2, 3, device="meta"))).shape == (2, 3)


def test_memory_order_stays() -> None:
    kept = torch.tensor([True, True, False])[:, None, None, None].expand(3, 4, 2, 2)
    cut = ParameterCut(kept, (2, 4, 2, 2))
    tensor = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    small, removed = cut.split(tensor)
    assert small.is_contiguous(memory_format=torch.channels_last)
    assert cut.join(small, removed).stride() == tensor.stride()
    turned = ParameterCut(cut.kept[:, :, 0, 0], (2, 4)).apply(torch.randn(4, 3).T)
    assert turned.stride() == (1, 2)


def test_sparse_gradient_keeps_its_entries() -> None:
    cut = ParameterCut(torch.tensor([[True, False, True]] * 4), (4, 2))
    gradient = torch.sparse_coo_tensor([[1, 3]], torch.zeros(2, 3), (4, 3), check_invariants=True)
    assert cut.apply(gradient)._nnz() == 2
    assert torch.equal(cut.apply(gradient).to_dense(), torch.zeros(4, 2))


def test_nothing_goes_gives_a_copy() -> None:
    cut = ParameterCut(torch.ones(2, 3, dtype=torch.bool), (2, 3))
    tensor = torch.randn(2, 3)
    assert not cut.changes
    assert torch.equal(cut.apply(tensor), tensor)
    assert cut.apply(tensor).data_ptr() != tensor.data_ptr()


def test_everything_goes() -> None:
    cut = ParameterCut(torch.zeros(2, 3, dtype=torch.bool), (0, 3))
    tensor = torch.randn(2, 3)
    assert cut.apply(tensor).shape == (0, 3)
    assert torch.equal(cut.join(*cut.split(tensor)), tensor)


def test_a_number_is_its_own_box() -> None:
    assert ParameterCut(torch.tensor(True), ()).apply(torch.tensor(2.0)) == 2.0


@pytest.mark.parametrize(
    ("kept", "new_shape", "message"),
    [
        (torch.ones(2, 3), (2, 3), "must be a bool tensor"),
        (torch.ones(2, 3, dtype=torch.bool, device="meta"), (2, 3), "with values"),
        (torch.tensor([True, False]), (2,), "1 entries kept of .2,. do not form a box"),
        (torch.tensor([[True, False], [True, True]]), (3, 1), "do not form a box"),
        (torch.tensor([[True, False], [True, True]]), (2, 1), "do not form a box"),
        (torch.tensor([[True, False], [True, True]]), (3,), "do not form a box"),
        (torch.tensor([[True, True], [True, True]]), (4,), "do not form a box"),
        (torch.tensor([[True, True], [True, True]]), (4, 1), "do not form a box"),
        (torch.tensor([[False, False]]), (), "do not form a box"),
        (torch.tensor(False), (), "do not form a box"),
        # Three rows keep two columns each in all, but row-major order would not keep columns together.
        (torch.tensor([[True, False], [False, True], [True, True]]), (2, 2), "do not form a box"),
    ],
)
def test_bad_cut_is_refused(kept: torch.Tensor, new_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        ParameterCut(kept, new_shape)


def test_other_shape_is_refused() -> None:
    cut = ParameterCut(torch.tensor([True, False, True]), (2,))
    with pytest.raises(RewriteError, match=r"got \(2,\), not \(3,\)"):
        cut.apply(torch.ones(2))
    with pytest.raises(RewriteError, match=r"got \(3,\), not \(2,\)"):
        cut.scatter(torch.ones(3))


def test_collapse_of_dependent_indices_is_refused() -> None:
    cut = ParameterCut(torch.tensor([[True, False], [False, True]]), (2, 1))
    with pytest.raises(RewriteError, match="do not form a box"):
        cut.collapse(0)


def test_a_mask_that_repeats_takes_no_memory() -> None:
    rows = torch.tensor([True, False, True])
    mask = rows[:, None].expand(3, 5).clone()
    one = ParameterCut(mask, (2, 5))
    assert one.kept.untyped_storage().nbytes() == 3
    assert torch.equal(one.kept, mask)
    assert torch.equal(one.collapse(1).kept, rows[:, None])
    mask[:, 1] = False
    assert torch.equal(ParameterCut(mask, (2, 4)).kept, mask)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 5, 2), (4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)], ids=str)
def test_a_cut_along_axes_is_that_of_its_mask(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    lines = [
        torch.arange(n) % 3 != 1 if a in axes else torch.ones(n, dtype=torch.bool)
        for a, n in enumerate(shape)
    ]
    mask = torch.ones(shape, dtype=torch.bool)
    for axis, line in enumerate(lines):
        mask &= line.view([-1 if a == axis else 1 for a in range(len(shape))])
    mine, theirs = ParameterCut.along(lines), ParameterCut(mask, tuple(int(x.sum()) for x in lines))
    assert (mine.new_shape, mine.old_shape, mine.changes) == (theirs.new_shape, shape, theirs.changes)
    assert torch.equal(mine.kept, mask)
    assert all(torch.equal(mine.axis_kept(a), theirs.axis_kept(a)) for a in range(-1, len(shape)))
    whole = torch.randn(shape)
    assert torch.equal(mine.apply(whole), theirs.apply(whole))
    assert torch.equal(mine.join(*mine.split(whole)), whole)
    assert torch.equal(mine.collapse(0).kept, theirs.collapse(0).kept)
