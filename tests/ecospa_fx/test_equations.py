"""Least squares from sums, against torch.linalg on the rows themselves."""

import pytest
import torch

from ecospa_fx.equations import NormalEquations, _valley, best_damping

X = torch.randn(40, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.1, 30.0, 1.0], dtype=torch.float64)
R = torch.randn(40, 3, dtype=torch.float64) + 2


def summed(x: torch.Tensor, r: torch.Tensor, centred: bool = False) -> NormalEquations:
    found = NormalEquations(x.shape[1], r.shape[1], centred)
    for part in zip(x.split(7), r.split(7), strict=True):
        found.add(*part)
    return found


def damped(x: torch.Tensor, r: torch.Tensor, damping: float) -> torch.Tensor:
    """The same by rows: each input has one more row, as heavy as its own energy says."""
    extra = torch.diag((damping * x.square().sum(0)).sqrt())
    zeros = torch.zeros(len(extra), r.shape[1], dtype=r.dtype)
    return torch.linalg.lstsq(torch.cat([x, extra]), torch.cat([r, zeros])).solution


@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.5])
def test_the_minimum(damping: float) -> None:
    change, offset = summed(X, R).solve(damping)
    torch.testing.assert_close(change, damped(X, R, damping))
    assert not offset.any()


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_the_minimum_with_an_offset(damping: float) -> None:
    change, offset = summed(X, R, centred=True).solve(damping)
    torch.testing.assert_close(change, damped(X - X.mean(0), R - R.mean(0), damping))
    torch.testing.assert_close(offset, R.mean(0) - X.mean(0) @ change)


def test_the_units_of_an_input_do_not_matter() -> None:
    scale = torch.tensor([1.0, 10.0, 0.01, 3.0, 7.0], dtype=torch.float64)
    change, scaled = (summed(x, R).solve(0.1)[0] for x in (X, X * scale))
    torch.testing.assert_close(scaled * scale[:, None], change)


def test_an_input_that_is_always_zero_gets_nothing() -> None:
    x = X.clone()
    x[:, 2] = 0
    change, _ = summed(x, R).solve(0.1)
    assert not change[2].any()
    assert torch.isfinite(change).all()


def test_the_error_of_any_change() -> None:
    change, offset = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = (X @ change + offset - R).square().sum()
    assert summed(X, R).error(change, offset) == pytest.approx(float(expected))


def test_equations_add_up() -> None:
    both = summed(X[:13], R[:13], True) + summed(X[13:], R[13:], True)
    assert both.rows == 40
    assert both.energy == pytest.approx(float(R.square().sum()))
    torch.testing.assert_close(both.solve(0.1), summed(X, R, True).solve(0.1))


def test_held_out_rows_choose_the_damping() -> None:
    truth = torch.randn(5, 3, dtype=torch.float64)
    damping, error = best_damping(summed(X[:20], X[:20] @ truth), summed(X[20:], X[20:] @ truth), (1e-6, 1.0))
    assert damping == 1e-6
    assert error < 1e-8


@pytest.mark.parametrize("lowest", range(6))
def test_the_best_damping_is_found_downhill(lowest: int) -> None:
    seen: list[int] = []
    assert _valley(lambda i: seen.append(i) or float(abs(i - lowest)), 6) == lowest
    assert len(set(seen)) <= 5


def test_where_nothing_fits_nothing_changes() -> None:
    x, r = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    assert best_damping(summed(x, r), summed(x, -r)) == (None, 1.0)
    assert best_damping(summed(x, r), summed(x, 0 * r)) == (None, 1.0)


def test_half_precision_is_summed_in_single() -> None:
    x, r = (torch.full((4096, 1), 0.1, dtype=torch.bfloat16) for _ in range(2))
    change, _ = summed(x, r).solve(0.0)
    assert float(change) == pytest.approx(1, rel=1e-4)


def test_autocast_around_it_plays_no_part() -> None:
    x, r = X.float(), R.float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = summed(x, r).solve(0.1)
    torch.testing.assert_close(inside, summed(x, r).solve(0.1), rtol=0, atol=0)
