"""The balanced basis of two moments, and how it goes into weights."""

import pytest
import torch

from ecospa_fx.basis import Block, Field
from ecospa_fx.passes.balance import basis, read_by, turned


def moments(rank: int = 5) -> torch.Tensor:
    rows = torch.randn(rank, 5, dtype=torch.float64)
    return rows.T @ rows


def test_both_moments_become_one_diagonal_the_strongest_first() -> None:
    torch.manual_seed(0)
    c, d = moments(), moments()
    turn = basis(c, d)
    inverse = torch.linalg.inv(turn)
    power = torch.linalg.eigvals(c @ d).real.sort(descending=True).values
    torch.testing.assert_close(turn @ c @ turn.T, power.sqrt().diag(), rtol=1e-2, atol=1e-3 * power[0].sqrt())
    torch.testing.assert_close(turn @ c @ turn.T, inverse.T @ d @ inverse, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_what_is_never_seen_stays_invertible(rank: int) -> None:
    torch.manual_seed(0)
    turn = basis(moments(rank), moments())
    assert torch.isfinite(turn).all()
    assert float(torch.linalg.cond(turn)) < 1e8


def test_weights_and_their_inverse() -> None:
    torch.manual_seed(0)
    made, read = torch.randn(7, 4, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64)
    blocks = (
        Block("made", 0, 2, "out"),
        Block("bias", 0, 2, "out"),
        Block("read", 1, 1, "in"),
        Block("read", 1, 6, "in"),
    )
    field = Field("vo", 3, blocks)
    turn = torch.randn(3, 3, dtype=torch.float64)
    parameters = {"made": made, "bias": bias, "read": read}
    found = turned([field], [turn], parameters)
    torch.testing.assert_close(found["read"][:, 1:4] @ found["made"][2:5], read[:, 1:4] @ made[2:5])
    torch.testing.assert_close(found["read"][:, 6:9] @ found["bias"][2:5], read[:, 6:9] @ bias[2:5])
    assert torch.equal(found["made"][:2], made[:2])
    assert torch.equal(found["read"][:, 4:6], read[:, 4:6])
    expected = read[:, 1:4].T @ read[:, 1:4] + read[:, 6:9].T @ read[:, 6:9]
    torch.testing.assert_close(read_by(field, parameters), expected)
