"""What values are to a router."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ecospa_fx.passes.ballots import Ballots


def kinds(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[str], str]:
    """Kinds of values in their order, and why experts stay."""
    graph = make_fx(function, pre_dispatch=True)(torch.randn(7, 3), torch.randn(8, 3)).graph
    ballots = Ballots(graph)
    problems = [e.problem[1] for e in ballots.elections.values() if e.problem is not None]
    return [ballots.known[n].kind for n in graph.nodes if n in ballots.known], "; ".join(problems)


def test_from_logits_to_numbers() -> None:
    found, problem = kinds(lambda x, w: (x @ w.T).softmax(-1).topk(2, -1)[1].reshape(-1))
    assert found == ["logits", "scores", "ids", "ids"]
    assert not problem


def test_groups_and_their_mask() -> None:
    def chosen(x: Tensor, w: Tensor) -> Tensor:
        scores = torch.nn.functional.linear(x, w).sigmoid()
        best = scores.reshape(7, 4, 2).topk(2, -1)[0].sum(-1)
        mask = torch.zeros_like(best).scatter(1, best.topk(2, -1)[1], 1)
        mask = mask.unsqueeze(-1).expand(7, 4, 2).reshape(7, 8)
        return scores.masked_fill(mask == 0, -torch.inf).topk(2, -1)[1]

    found, problem = kinds(chosen)
    assert found[:3] == ["logits", "scores", "scores"]
    assert {"inner", "groups", "admitted", "mask"} <= set(found)
    assert found[-1] == "ids"
    assert not problem


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: (x @ w.T).tanh().topk(2, -1)[1],
        lambda x, w: (x @ w.T).mean(-1),
        lambda x, w: (x @ w.T) * x[:, :1],
        lambda x, w: (x @ w.T).topk(2, -1, largest=False)[1],
        lambda x, w: (x @ w.T).reshape(8, 7).topk(2, -1)[1],
    ],
)
def test_what_is_not_understood_has_a_reason(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    _, problem = kinds(function)
    assert problem


def test_numbers_that_are_computed_with_are_no_numbers_of_experts() -> None:
    found, _ = kinds(lambda x, w: (x @ w.T).topk(2, -1)[1] + 1)
    assert found == ["logits", "ids"]


def test_a_mask_filled_in_place() -> None:
    def chosen(x: Tensor, w: Tensor) -> Tensor:
        scores = torch.nn.functional.softplus(x @ w.T).sqrt()
        best = scores.reshape(7, 4, 2).topk(2, -1)[0].sum(-1)
        mask = torch.zeros_like(best)
        mask.scatter_(1, best.topk(2, -1)[1], 1)
        mask = mask.unsqueeze(-1).expand(7, 4, 2).reshape(7, 8)
        numbers = scores.masked_fill(~mask.bool(), -torch.inf).topk(2, -1)[1]
        return scores.gather(1, numbers).type_as(scores)

    found, problem = kinds(chosen)
    assert {"inner", "groups", "admitted", "mask", "ids"} <= set(found)
    assert not problem


def test_logits_written_in_place_stay() -> None:
    def chosen(x: Tensor, w: Tensor) -> Tensor:
        scores = (x @ w.T).sigmoid()
        scores.scatter_(1, scores.topk(2, -1)[1], 1)
        return scores.topk(2, -1)[1]

    assert "in place" in kinds(chosen)[1]
