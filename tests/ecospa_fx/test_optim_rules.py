"""Optimizers whose state has shapes of its own, or codes instead of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

import ecospa_fx
from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerStateError
from ecospa_fx.optim_state import StateRules
from ecospa_fx.passes.remap import prepare
from tests.models.states import CUT, follow, rows_and_columns

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# Adafactor, as torch and transformers have it, keeps the mean squared gradient over rows and over columns.

FACTORED = [
    pytest.param(lambda params: torch.optim.Adafactor(params, lr=0.1), "row_var", "col_var", id="torch"),
    pytest.param(
        lambda params: TransformersAdafactor(params, lr=0.1, relative_step=False),
        "exp_avg_sq_row",
        "exp_avg_sq_col",
        id="transformers",
    ),
]
SHAPES = [(6, 4), (6, 1), (1, 4), (4, 4), (3, 6, 4), (2, 3, 3, 3)]


def stepped(build: Build, param: nn.Parameter, gradients: list[torch.Tensor]) -> torch.optim.Optimizer:
    optimizer = build([param])
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return optimizer


def estimate(row: torch.Tensor, column: torch.Tensor, dim: int) -> torch.Tensor:
    """The second moment as Adafactor puts it together."""
    row, column = (row, column) if row.dim() == dim else (row.unsqueeze(-1), column.unsqueeze(-2))
    return row * column / row.mean(-2, keepdim=True)


def some_cut(shape: tuple[int, ...]) -> ParameterCut:
    rows, columns = ([0] if size == 1 else list(range(1, size)) for size in shape[-2:])
    return rows_and_columns(rows, columns, shape)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_factored_estimate_of_survivors_stays(
    build: Build, row: str, column: str, shape: tuple[int, ...]
) -> None:
    cut, param = some_cut(shape), nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = stepped(build, param, [torch.randn_like(param) for _ in range(3)])
    dense = estimate(*(optimizer.state[param][key] for key in (row, column)), len(shape))
    small = estimate(*(follow(optimizer, param, key, cut) for key in (row, column)), len(shape))
    torch.testing.assert_close(small, cut.apply(dense), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_factored_state_of_zero_pairs_is_exact(
    build: Build, row: str, column: str, shape: tuple[int, ...]
) -> None:
    cut = some_cut(shape)
    param = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    small = nn.Parameter(cut.apply(param.detach()))
    gradients = [torch.randn_like(param) * cut.kept for _ in range(3)]
    optimizer = stepped(build, param, gradients)
    reference = stepped(build, small, [cut.apply(gradient) for gradient in gradients])
    for key in (row, column):
        torch.testing.assert_close(
            follow(optimizer, param, key, cut), reference.state[small][key], rtol=1e-12, atol=1e-28
        )


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_may_differ_by_expert(build: Build, row: str, column: str) -> None:
    kept = torch.zeros(2, 3, 4, dtype=torch.bool)
    kept[0, :2, 1:] = kept[1, 1:, :3] = True
    cut, param = ParameterCut(kept, (2, 2, 3)), nn.Parameter(torch.randn(2, 3, 4, dtype=torch.float64))
    optimizer = stepped(build, param, [torch.randn_like(param)])
    dense = estimate(*(optimizer.state[param][key] for key in (row, column)), 3)
    small = estimate(*(follow(optimizer, param, key, cut) for key in (row, column)), 3)
    torch.testing.assert_close(small, cut.apply(dense), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_may_differ_by_head(build: Build, row: str, column: str) -> None:
    kept = torch.tensor([[True, True, False, False], [False, True, False, True]]).expand(3, 2, 4)
    cut = ParameterCut(kept, (3, 2, 2), rows=1)
    param = nn.Parameter(torch.randn(3, 2, 4, dtype=torch.float64))
    optimizer = stepped(build, param, [torch.randn_like(param)])
    r, c = (
        optimizer.state[param][key].reshape(shape) for key, shape in ((row, (3, 2, 1)), (column, (3, 1, 4)))
    )
    dense = cut.apply(r * c / r.mean(1, keepdim=True))
    for key, axis in ((row, 2), (column, 1)):
        torch.testing.assert_close(follow(optimizer, param, key, cut).flatten(), dense.mean(axis).flatten())


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_of_zeros_stays_finite(build: Build, row: str, column: str) -> None:
    param = nn.Parameter(torch.ones(4, 4))
    optimizer = stepped(build, param, [torch.zeros(4, 4)])
    optimizer.state[param][row].zero_()
    optimizer.state[param][column].zero_()
    assert not follow(optimizer, param, row, CUT).any()
    assert not follow(optimizer, param, column, CUT).any()


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_without_a_common_column_set_is_the_mean_of_the_survivors(
    build: Build, row: str, column: str
) -> None:
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = stepped(build, param, [torch.tensor([[1.0, 2.0], [3.0, 6.0]])])
    r, c = (optimizer.state[param][key].flatten() for key in (row, column))
    whole = torch.outer(r, c) / r.mean()
    cut = ParameterCut(torch.eye(2, dtype=torch.bool), (2, 1))
    torch.testing.assert_close(follow(optimizer, param, row, cut).flatten(), whole.diag())
    torch.testing.assert_close(follow(optimizer, param, column, cut).flatten(), whole.diag().mean()[None])


# Optimizers of other packages.

SHAPE, ROWS, COLUMNS = (96, 64), [*range(5, 70)], [*range(0, 64, 2), 63]
WIDE = rows_and_columns(ROWS, COLUMNS, SHAPE)


def trained(build: Build, steps: int = 4, masked: bool = False, shape: tuple[int, ...] = SHAPE) -> Any:
    """A weight and its optimizer after some steps; with ``masked``, what goes never had a gradient."""
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(shape))
    optimizer = build([param])
    for _ in range(steps):
        param.grad = torch.randn(shape) * (WIDE.kept if masked else 1)
        optimizer.step()
    return param, optimizer


def cut(param: nn.Parameter, optimizer: torch.optim.Optimizer, kept: ParameterCut = WIDE) -> Any:
    return prepare({"weight": param}, {"weight": kept}, [optimizer])


def goes_on(param: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    """Steps on the smaller weight still lead downhill."""
    start = float(param.detach().square().mean())
    for _ in range(20):
        param.grad = 2 * param.detach().clone()
        optimizer.step()
    assert float(param.detach().square().mean()) < start
    assert all(v.isfinite().all() for v in optimizer.state[param].values() if _is_plain_float(v))


def _is_plain_float(value: Any) -> bool:
    return type(value) is torch.Tensor and value.is_floating_point()


@pytest.mark.filterwarnings("ignore")
def test_lion_follows_by_the_shape_of_its_state() -> None:
    lion = pytest.importorskip("lion_pytorch").Lion
    param, optimizer = trained(lambda p: lion(p, lr=1e-3))
    expected = WIDE.apply(optimizer.state[param]["exp_avg"])
    cut(param, optimizer).commit()
    assert torch.equal(optimizer.state[param]["exp_avg"], expected)
    goes_on(param, optimizer)


EIGHT_BIT = {
    "AdamW8bit": {}, "Adam8bit": {}, "Lion8bit": {}, "SGD8bit": {"momentum": 0.9}, "RMSprop8bit": {},
    "Adagrad8bit": {}, "AdEMAMix8bit": {}, "PagedAdamW8bit": {},
}  # fmt: skip


def eight_bit(name: str) -> Build:
    bnb = pytest.importorskip("bitsandbytes")
    return lambda p: getattr(bnb.optim, name)(p, lr=1e-2, min_8bit_size=16, **EIGHT_BIT[name])


def decoded(state: dict[str, Any], number: int, dim: int = 2) -> torch.Tensor:
    from ecospa_fx.optim_rules import _decoded

    return _decoded(state[f"state{number}"], state[f"absmax{number}"], state[f"qmap{number}"], dim)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EIGHT_BIT)
def test_eight_bits_are_decoded_cut_and_coded(name: str) -> None:
    param, optimizer = trained(eight_bit(name))
    state = optimizer.state[param]
    numbers = [n for n in (1, 2) if f"state{n}" in state]
    before = {n: decoded(state, n) for n in numbers}
    former = copy.deepcopy(state)
    transfer = cut(param, optimizer)
    transfer.commit()
    for n, dense in before.items():
        wanted = WIDE.apply(dense) if dense.dim() == 2 else torch.stack([WIDE.apply(d) for d in dense])
        found = decoded(optimizer.state[param], n)
        assert optimizer.state[param][f"state{n}"].dtype is torch.uint8
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
        assert (found - wanted).norm() < 0.02 * wanted.norm()
    transfer.rollback()
    assert all(torch.equal(v, state[k]) for k, v in former.items() if isinstance(v, torch.Tensor))
    transfer.commit()
    goes_on(param, optimizer)


@pytest.mark.filterwarnings("ignore")
def test_whole_blocks_keep_their_codes() -> None:
    """Eight rows of 64 entries are two blocks: what stays is bit for bit what it was."""
    param, optimizer = trained(eight_bit("AdamW8bit"))
    before = copy.deepcopy(optimizer.state[param])
    rows = rows_and_columns([*range(8, 96)], [*range(64)], SHAPE)
    cut(param, optimizer, rows).commit()
    for n in (1, 2):
        assert torch.equal(optimizer.state[param][f"state{n}"], before[f"state{n}"][8:])
        assert torch.equal(optimizer.state[param][f"absmax{n}"], before[f"absmax{n}"][2:])


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_beside_a_sparse_model() -> None:
    model = nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))
    compiled = ecospa_fx.compile(model, args=(torch.randn(4, 32),))
    optimizer = eight_bit("AdamW8bit")(list(compiled.parameters()))
    schedule = ecospa_fx.SparsitySchedule(compiled, optimizer, target_ratio=0.5, every=3, end=9)
    losses = []
    for x in torch.randn(40, 16, 32, generator=torch.Generator().manual_seed(0)):
        loss = (compiled(x) - x.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    assert schedule.done
    assert losses[-1] < losses[9]
    assert compiled.verify().within(1e-5)


def test_codes_that_are_no_blocks_are_refused() -> None:
    class Optimizer8bit(torch.optim.SGD):
        pass

    Optimizer8bit.__module__ = "bitsandbytes.optim.optimizer"
    Optimizer8bit.__qualname__ = "Optimizer8bit"
    param = nn.Parameter(torch.zeros(SHAPE))
    optimizer = Optimizer8bit([param], lr=0.1)
    codes = torch.zeros(SHAPE, dtype=torch.uint8)
    optimizer.state[param] = {"state1": codes, "absmax1": torch.zeros(7), "qmap1": torch.arange(256.0)}
    with pytest.raises(OptimizerStateError, match="6144 codes have 7 scales"):
        StateRules(optimizer).find("weight", param, "state1", WIDE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole blocks", "a rest"])
def test_moments_of_torchao(name: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    optim = pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it compiles each step
    param, optimizer = trained(lambda p: getattr(optim, name)(p, lr=1e-2))
    kept = rows_and_columns([*range(64)] if whole else ROWS, [*range(64)] if whole else COLUMNS, SHAPE)
    before = {k: optimizer.state[param][k].dequantize() for k in ("exp_avg", "exp_avg_sq")}
    kind = type(optimizer.state[param]["exp_avg"])
    transfer = cut(param, optimizer, kept)
    transfer.commit()
    for key, dense in before.items():
        found = optimizer.state[param][key]
        assert type(found) is (kind if whole else torch.Tensor)
        torch.testing.assert_close(found.dequantize() if whole else found, kept.apply(dense))
    transfer.rollback()
    assert torch.equal(optimizer.state[param]["exp_avg"].dequantize(), before["exp_avg"])
    transfer.commit()
    goes_on(param, optimizer)


def galore(kind: str, rank: int = 8) -> Build:
    adamw = pytest.importorskip("galore_torch").GaLoreAdamW

    def build(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        group = {"params": params, "rank": rank, "update_proj_gap": 50, "scale": 1.0, "proj_type": kind}
        optimizer: torch.optim.Optimizer = adamw([group], lr=1e-2, no_deprecation_warning=True)
        return optimizer

    return build


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["std", "reverse_std", "left", "right"])
def test_galore_goes_on_as_the_masked_model(kind: str) -> None:
    """Where what goes had no gradient, the steps after the cut are the masked model's."""
    param, optimizer = trained(galore(kind), masked=True)
    dense, reference = copy.deepcopy((param, optimizer))
    cut(param, optimizer).commit()
    for _ in range(3):
        gradient = torch.randn(SHAPE) * WIDE.kept
        param.grad, dense.grad = WIDE.apply(gradient), gradient
        optimizer.step()
        reference.step()
    torch.testing.assert_close(param, WIDE.apply(dense), rtol=1e-4, atol=1e-5)
    goes_on(param, optimizer)


@pytest.mark.filterwarnings("ignore")
def test_galore_refuses_what_its_projector_does_not_suit() -> None:
    param, optimizer = trained(galore("std"))
    flipped = rows_and_columns([*range(20)], [*range(64)], SHAPE)
    with pytest.raises(
        OptimizerStateError, match=r"right side of \(96, 64\), which does not suit \(20, 64\)"
    ):
        cut(param, optimizer, flipped)
    cut(*trained(galore("right")), flipped).commit()
    with pytest.raises(OptimizerStateError, match="takes 40 directions"):
        cut(*trained(galore("right", 40)), flipped)


@pytest.mark.filterwarnings("ignore")
def test_galore_leaves_other_groups_to_their_shape() -> None:
    adamw = pytest.importorskip("galore_torch").GaLoreAdamW
    param, optimizer = trained(lambda p: adamw(p, lr=1e-2, no_deprecation_warning=True))
    expected = WIDE.apply(optimizer.state[param]["exp_avg_sq"])
    cut(param, optimizer).commit()
    assert torch.equal(optimizer.state[param]["exp_avg_sq"], expected)
