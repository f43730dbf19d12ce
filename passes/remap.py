"""Make parameters smaller in place, and let their gradients and their optimizers' state follow.

`prepare` checks everything and changes nothing, `Transfer.commit` does it, `Transfer.rollback` undoes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.agreement import Attempt, together
from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerStateError, RewriteError
from ecospa_fx.exchange import exchange
from ecospa_fx.fsdp import Shard, Smaller, smaller
from ecospa_fx.optim_state import StateRule, StateRules, cut_entry
from ecospa_fx.passes.fit import check_cuts, check_held, check_memory, held_by_optimizer
from ecospa_fx.sharded import is_sharded

Back = Callable[[], torch.Tensor]
"""Rebuilds a tensor as it was before the cut."""


@dataclass(frozen=True)
class StateMove:
    """One optimizer's state for one parameter, and the rule by which each entry follows."""

    state: dict[str, Any]
    rules: Mapping[str, StateRule]


@dataclass(frozen=True, eq=False)
class ParameterMove:
    """One parameter that becomes smaller, with everything that follows it."""

    name: str
    param: nn.Parameter
    cut: ParameterCut
    states: tuple[StateMove, ...]


@dataclass(eq=False)
class Transfer:
    """A checked change of parameters and optimizer state, not yet made.

    Memory: `commit` works tensor by tensor and keeps, for `rollback`, only what was removed. Survivors and
    removed entries together are as large as before, so the peak is the model as it was plus its largest
    parameter (with the gradient). Rolling back needs no more. Drop the Transfer to free the removed entries.

    Attributes:
        moves: what becomes smaller; parameters that lose nothing are not in it.
        shards: what ``fully_shard`` keeps for parameters, by id. Of those each rank holds its part; all ranks
            have to commit, each tensor is gathered, and until the Transfer is dropped a rank holds its part
            of the former ones as well.
    """

    moves: tuple[ParameterMove, ...]
    shards: Mapping[int, Shard] = field(default_factory=dict)
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.moves)

    def commit(self) -> None:
        """Make the change.

        Every Parameter stays the same object, with its attributes, its hooks and its weak references; so
        optimizers, schedulers and whoever else holds it go on. A backward pass through a graph recorded
        before the cut still works: it sees the old values, and the gradient that it has for a parameter is
        cut alike and reaches the parameter's hooks and ``.grad`` as ever. (Hooks on the parameter's
        AccumulateGrad node, which DistributedDataParallel uses, stay with the old node: wrap the model anew.)

        Raises:
            RewriteError: something in torch holds on to a parameter so that it cannot be exchanged.
            BaseException: whatever else fails, such as a lack of memory. In any case everything is as before.
        """
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as undo:
            for part in _gathered([m for m in self.moves if id(m.param) in self.shards], self.shards):
                part.install(undo)
            for move in [m for m in self.moves if id(m.param) not in self.shards]:
                for state in move.states:
                    _move_state(state, move.param, move.cut, undo)
                _move_parameter(move, undo)
            self._undo = undo.pop_all()

    def rollback(self) -> None:
        """Undo `commit`: every value becomes, bit for bit, what it was. Before `commit` this does nothing.

        Call it before anything else changes parameters, gradients or state.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._undo.close()


def prepare(
    parameters: Mapping[str, nn.Parameter],
    cuts: Mapping[str, ParameterCut],
    optimizers: Sequence[Optimizer] = (),
    shards: Mapping[int, Shard] | None = None,
) -> Transfer:
    """Check that parameters and optimizers can follow ``cuts``; change nothing.

    State that is factored or not entry by entry (Adafactor, Muon) follows too, but the steps after the cut
    are not those of the masked model: Adafactor's clipping and Muon's orthogonalisation mix all entries.

    Args:
        parameters: all parameters of the model by name; a tied one may appear under each of its names.
        cuts: by parameter name; for a tied parameter one of its names is enough.
        optimizers: each must hold parameters of the model, and together all that are cut and train.
        shards: see :func:`ecospa_fx.fsdp.shards`.

    Returns:
        The checked change. Nothing may change parameters or optimizers before it is committed.

    Raises:
        RewriteError: a cut does not fit its parameter, or a parameter cannot be cut (quantised, sparse,
            lazy, a tensor subclass, sharing memory with another).
        OptimizerError: an optimizer holds none of the parameters, some are in none, or its kind is refused.
        OptimizerStateError: an entry of an optimizer's state cannot be placed.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> cut = ParameterCut(torch.tensor([[True, True, False]] * 2), (2, 2))
        >>> prepare(dict(layer.named_parameters()), {"weight": cut}, [optimizer]).commit()
        >>> layer.weight.shape, optimizer.param_groups[0]["params"][0] is layer.weight
        (torch.Size([2, 2]), True)
    """
    shards = shards or {}
    check_cuts(parameters, cuts, shards)
    cut_of = {id(parameters[name]): (name, cut) for name, cut in cuts.items() if cut.changes}
    check_memory(parameters, cut_of.keys())
    check_held(parameters, cut_of.keys(), optimizers)
    followers = [
        StateRules(optimizer)
        for optimizer in optimizers
        if held_by_optimizer(optimizer).keys() & cut_of.keys()
    ]
    moves = _moves([(name, parameters[name], cut) for name, cut in cut_of.values()], followers)
    return Transfer(moves, shards)


def _moves(
    targets: Sequence[tuple[str, nn.Parameter, ParameterCut]], followers: Sequence[StateRules]
) -> tuple[ParameterMove, ...]:
    """Find the rule of every entry of every optimizer's state; nothing is cut yet."""
    errors: dict[str, OptimizerStateError] = {}
    moves = [
        ParameterMove(
            name, param, cut, tuple(_state_move(rules, name, param, cut, errors) for rules in followers)
        )
        for name, param, cut in targets
    ]
    if errors:
        first, *others = errors
        also = f"\nThe same goes for {', '.join(others)}." if others else ""
        raise OptimizerStateError(f"{errors[first]}{also}") from errors[first]
    return tuple(moves)


def _state_move(
    rules: StateRules,
    name: str,
    param: nn.Parameter,
    cut: ParameterCut,
    errors: dict[str, OptimizerStateError],
) -> StateMove:
    state = rules.optimizer.state.get(param, {})
    found: dict[str, StateRule] = {}
    sharded = is_sharded(param)
    for key in state:
        try:
            found[key] = (
                rules.find_sharded(name, param, key) if sharded else rules.find(name, param, key, cut)
            )
        except OptimizerStateError as error:
            errors[f"{key!r} of {name!r}"] = error
    return StateMove(state, found)


def _gathered(moves: Sequence[ParameterMove], shards: Mapping[int, Shard]) -> list[Smaller]:
    """What this rank will hold of sharded parameters; if that fails on one rank it fails on all.

    A rank on which it has failed still takes part in gathering, for which the others wait.
    """
    if not moves:
        return []
    attempt = Attempt()
    found = [
        smaller(shards[id(m.param)], m.param, m.cut, [_cut_entries(state) for state in m.states], attempt)
        for m in moves
    ]
    together("cutting the parameters", attempt.check)
    return found


def _cut_entries(move: StateMove) -> tuple[dict[str, Any], list[str]]:
    return move.state, [key for key, rule in move.rules.items() if rule is cut_entry]


def _move_state(move: StateMove, param: nn.Parameter, cut: ParameterCut, undo: ExitStack) -> None:
    """Rules first, since they may look at entries that are not cut yet; then one big tensor at a time."""
    state, rules = move.state, move.rules
    ruled = [key for key, rule in rules.items() if rule is not cut_entry]
    for key, value in [(key, rules[key](key, state[key], param, cut, state)) for key in ruled]:
        undo.callback(state.__setitem__, key, state[key])
        state[key] = value
    for key in [key for key in rules if key not in ruled]:
        small, back = _shrink(state[key], cut)
        undo.callback(_put_back, state, key, back)
        state[key] = small


def _put_back(state: dict[str, Any], key: str, back: Back) -> None:
    state[key] = back()


def _shrink(tensor: torch.Tensor, cut: ParameterCut) -> tuple[torch.Tensor, Back]:
    """Cut ``tensor``, and return the way back, which holds no more than what was removed."""
    if tensor.layout is not torch.strided:
        return cut.apply(tensor), lambda: tensor
    small, removed = cut.split(tensor)
    return small, lambda: cut.join(small, removed)


def _move_parameter(move: ParameterMove, undo: ExitStack) -> None:
    small, back = _shrink(move.param.detach(), move.cut)
    grad, grad_back = _shrink(move.param.grad, move.cut) if move.param.grad is not None else (None, None)
    former: list[weakref.ref[torch.Tensor]] = []
    undo.callback(_restore, move, former, back, grad_back)
    try:
        former.append(exchange(move.param, small.detach(), grad, move.cut.apply))
    except RewriteError as error:
        raise RewriteError(f"{move.name!r} cannot be cut in place: {error}") from error


def _restore(
    move: ParameterMove, former: Sequence[weakref.ref[torch.Tensor]], back: Back, grad_back: Back | None
) -> None:
    """Give the parameter its former tensor, if something kept that alive, or one rebuilt from its parts."""
    if tuple(move.param.shape) == move.cut.old_shape:
        return  # interrupted before the exchange
    dense = former[0]() if former else None
    grad = grad_back() if grad_back else None
    exchange(move.param, back() if dense is None else dense, grad, move.cut.scatter)
