"""Cuts, and how one entry of an optimizer's state follows, for the tests of its rules."""

import torch

from ecospa_fx.cut import ParameterCut
from ecospa_fx.optim_state import StateRules


def rows_and_columns(rows: list[int], columns: list[int], shape: tuple[int, ...]) -> ParameterCut:
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[..., torch.tensor(rows)[:, None], torch.tensor(columns)] = True
    return ParameterCut(kept, (*shape[:-2], len(rows), len(columns)))


def follow(
    optimizer: torch.optim.Optimizer, param: torch.Tensor, key: str, cut: ParameterCut
) -> torch.Tensor:
    state = StateRules(optimizer).optimizer.state[param]
    rule = StateRules(optimizer).find("weight", param, key, cut)
    return rule(key, state[key], param, cut, state)


CUT = rows_and_columns([0, 2], [1, 2, 3], (4, 4))
