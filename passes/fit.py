"""Fit: whether parameters can be cut, and whether optimizers hold what is. Nothing is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerError, RewriteError
from ecospa_fx.fsdp import Shard, obstacle
from ecospa_fx.optim_state import inner_optimizers
from ecospa_fx.sharded import is_sharded


def check_cuts(
    parameters: Mapping[str, nn.Parameter],
    cuts: Mapping[str, ParameterCut],
    shards: Mapping[int, Shard] | None = None,
) -> None:
    """Every cut must fit its parameter, and all names of a tied parameter must get the same one.

    Args:
        parameters: all parameters of the model by name.
        cuts: by parameter name.
        shards: what ``fully_shard`` keeps for parameters, by id.

    Raises:
        RewriteError: it is not so; all culprits are listed.
    """
    problems = [f"the model has no parameter {name!r}" for name in cuts if name not in parameters]
    first: dict[int, str] = {}
    for name in [name for name in cuts if name in parameters]:
        tied = first.setdefault(id(parameters[name]), name)
        if not torch.equal(cuts[name].kept, cuts[tied].kept):
            problems.append(f"{tied!r} and {name!r} are one parameter, and their cuts differ")
        if why := _obstacle(parameters[name], cuts[name], shards or {}):
            problems.append(f"{name!r} {why}")
    if problems:
        raise RewriteError("cannot cut parameters: " + "; ".join(problems))


def _obstacle(param: nn.Parameter, cut: ParameterCut, shards: Mapping[int, Shard]) -> str | None:
    """Why ``param`` cannot be cut, if so."""
    if isinstance(param, nn.UninitializedParameter):
        return "is not initialised yet: run the model once"
    if not (param.is_floating_point() or param.is_complex()):
        return f"is quantised ({param.dtype}): sparsify before quantising"
    if param.layout is not torch.strided:
        return f"is sparse ({param.layout}): call .to_dense() first"
    if is_sharded(param):
        return obstacle(shards.get(id(param)), cut)
    if not _is_plain(param):
        return f"is a {type(param.detach()).__name__}: sparsify before sharding or quantising"
    if param.is_inference() or not param.is_leaf:
        return "is no leaf that autograd can train"
    if tuple(param.shape) != cut.old_shape:
        return f"has shape {tuple(param.shape)}, its cut is for {cut.old_shape}"
    return None


def _is_plain(param: torch.Tensor) -> bool:
    """Whether ``param`` has memory of its own: no tensor subclass inside, not lazy, not sparse."""
    if isinstance(param, nn.UninitializedParameter) or param.layout is not torch.strided:
        return False
    return type(param.detach()) is torch.Tensor


def check_memory(parameters: Mapping[str, nn.Parameter], cut: Collection[int]) -> None:
    """Parameters that are tied by sharing memory alone would come apart.

    Args:
        parameters: all parameters of the model by name.
        cut: ids of those that are cut.

    Raises:
        RewriteError: some are.
    """
    places: dict[int, dict[int, str]] = defaultdict(dict)
    for name, param in parameters.items():
        if _is_plain(param):
            places[param.data_ptr()].setdefault(id(param), name)
    shared = [users for at, users in places.items() if at and len(users) > 1 and users.keys() & cut]
    if shared:
        names = "; ".join(", ".join(map(repr, users.values())) for users in shared)
        raise RewriteError(
            f"parameters share memory without being the same Parameter: {names}. Tie them by assigning one "
            "Parameter to both modules"
        )


def held_by_optimizer(optimizer: Optimizer) -> dict[int, torch.Tensor]:
    """The optimizer's parameters by id."""
    return {id(param): param for group in optimizer.param_groups for param in group["params"]}


def check_held(
    parameters: Mapping[str, nn.Parameter], cut: Collection[int], optimizers: Sequence[Optimizer]
) -> None:
    """Each optimizer must hold some of the model, and one of them every parameter that is cut and trains.

    Args:
        parameters: all parameters of the model by name.
        cut: ids of those that are cut.
        optimizers: the optimizers.

    Raises:
        OptimizerError: it is not so.
    """
    ours = {id(param) for param in parameters.values()}
    held: dict[int, torch.Tensor] = {}
    for optimizer in inner_optimizers(optimizers):
        if not held_by_optimizer(optimizer).keys() & ours:
            hint = _copy_hint(parameters.values(), held_by_optimizer(optimizer).values())
            raise OptimizerError(f"{type(optimizer).__name__} holds none of the model's parameters{hint}")
        held.update(held_by_optimizer(optimizer))
    missing = {n: p for n, p in parameters.items() if id(p) in cut and id(p) not in held and p.requires_grad}
    if optimizers and missing:
        hint = _copy_hint(missing.values(), [param for key, param in held.items() if key not in ours])
        raise OptimizerError(
            f"no optimizer that was passed holds {', '.join(map(repr, missing))}{hint}. Pass every optimizer "
            "that trains them, or set requires_grad=False on what does not train"
        )


def _copy_hint(missing: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> str:
    if {param.shape for param in missing} & {param.shape for param in others}:
        return ", only others of the same shapes: was it built from another copy of the model?"
    return ""
