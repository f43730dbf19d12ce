"""How the state that an optimizer keeps for a parameter follows when the parameter is cut.

By what the state's shape says: a tensor of the parameter's shape is cut like it; one number, None or a string
stays. The table of rules says the rest and comes first, because a shape can coincide: the row factor of an
``[n, 1]`` weight has the weight's shape. What neither can place is refused before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.optim import Optimizer

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import EcoSpaError, OptimizerError, OptimizerStateError
from ecospa_fx.sharded import is_sharded

StateRule = Callable[[str, Any, torch.Tensor, ParameterCut, Mapping[str, Any]], Any]
"""From ``(key, value, parameter before the cut, cut, the parameter's whole state)`` to the new value."""

_RULES: dict[type[Optimizer] | str, StateRule] = {}

_REFUSED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "keeps one flat history over all parameters, in which none has a place of its own. "
    "Sparsify with another optimizer, or without one and start a new LBFGS on the smaller model",
}


def register_optimizer_state(
    optimizer_class: type[Optimizer] | str, *, whole_state: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say how the state of an optimizer follows a cut, where shapes do not say it.

    The decorated function gets ``(key, value, param, cut)``: the entry's name and value, the parameter as it
    is before the cut, and the `ParameterCut`. It returns the new value, or NotImplemented to leave the entry
    to the base class's rule and then to its shape. It must change nothing: it may be called more than once.

    Args:
        optimizer_class: the class, subclasses included; or its dotted name, to spare the import.
        whole_state: also pass ``state``, all entries of the parameter, as a fifth argument.

    Returns:
        The decorator.

    Raises:
        OptimizerStateError: the class has a rule already.

    Example:
        >>> class Normalised(torch.optim.SGD):
        ...     pass  # keeps a mean gradient per row: state["row_mean"], shape [out]
        >>> @register_optimizer_state(Normalised)
        ... def normalised(key, value, param, cut):
        ...     return value[cut.axis_kept(0)] if key == "row_mean" else NotImplemented
    """
    if optimizer_class in _RULES:
        raise OptimizerStateError(f"{optimizer_class} has a rule for its state already")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _RULES[optimizer_class] = function if whole_state else _without_state(function)
        return function

    return register


def keep_entry(key: str, value: Any, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]) -> Any:
    """The rule of an entry that does not depend on the parameter's shape, such as ``step``."""
    return value


def cut_entry(
    key: str, value: torch.Tensor, param: torch.Tensor, cut: ParameterCut, state: Mapping[str, Any]
) -> torch.Tensor:
    """The rule of an entry of the parameter's shape, such as ``exp_avg``."""
    return cut.apply(value)


class StateRules:
    """The rules by which one optimizer's state follows a cut.

    Args:
        optimizer: a ``torch.optim.Optimizer``; one that wraps another as ``.optimizer`` counts as that one.

    Raises:
        OptimizerError: its state belongs to no single parameter (LBFGS).
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = inner_optimizer(optimizer)
        for base in type(self.optimizer).__mro__:
            if base in _REFUSED:
                raise OptimizerError(f"{base.__name__} cannot follow a cut: it {_REFUSED[base]}")

    def find(self, name: str, param: torch.Tensor, key: str, cut: ParameterCut) -> StateRule:
        """The rule by which ``optimizer.state[param][key]`` follows ``cut``.

        Args:
            name: the parameter's name, for the error.
            param: the parameter before the cut.
            key: the entry's name.
            cut: the cut of ``param``.

        Returns:
            A registered rule, `cut_entry` or `keep_entry`.

        Raises:
            OptimizerStateError: nothing says where the entry belongs, or its rule cannot follow this cut.
        """
        state = self.optimizer.state[param]
        value = state[key]
        for rule in _registered(type(self.optimizer)):
            if _try(rule, name, key, value, param, cut, state) is not NotImplemented:
                return rule
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if shape == tuple(param.shape) and key not in self._irregular:
            return cut_entry
        if _is_single(value):
            return keep_entry
        kind = f"of shape {shape}" if shape is not None else f"of type {type(value).__name__}"
        raise OptimizerStateError(_unplaced(type(self.optimizer).__name__, name, key, kind, cut))

    def find_sharded(self, name: str, param: torch.Tensor, key: str) -> StateRule:
        """As :meth:`find`, for a parameter of which every rank holds a part: only shapes can say it.

        Raises:
            OptimizerStateError: the entry has another shape than the parameter.
        """
        value = self.optimizer.state[param][key]
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if shape == tuple(param.shape) and key not in self._irregular and is_sharded(value):
            return cut_entry
        if _is_single(value):
            return keep_entry
        raise OptimizerStateError(
            f"{type(self.optimizer).__name__} keeps {key!r} of shape {shape} for {name!r}, which is sharded: "
            "only state of the parameter's own shape can follow there. Take an optimizer that works entry by "
            "entry, such as AdamW or SGD"
        )

    @cached_property
    def _irregular(self) -> frozenset[str]:
        """Entries that differ in shape from some parameter, so that equal shapes elsewhere are chance.

        A preconditioner ``[out, out]`` has the shape of every square weight; the other weights give it away.
        """
        return frozenset(
            key
            for param, state in self.optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != param.shape
        )


def inner_optimizers(optimizer: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    """One optimizer or several, each without what wraps it.

    Raises:
        OptimizerError: something else is among them.
    """
    several = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    for one in several:
        if not isinstance(one, Optimizer):
            raise OptimizerError(f"expected a torch.optim.Optimizer, got {type(one).__name__}")
    return [inner_optimizer(one) for one in several]


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside one that wraps it as ``.optimizer``, as accelerate's does."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _without_state(function: Callable[..., Any]) -> StateRule:
    return lambda key, value, param, cut, state: function(key, value, param, cut)


def _registered(optimizer_class: type) -> list[StateRule]:
    """The rules of a class and its bases, most derived first."""
    names = [
        key for base in optimizer_class.__mro__ for key in (base, f"{base.__module__}.{base.__qualname__}")
    ]
    return [_RULES[key] for key in names if key in _RULES]


def _try(rule: StateRule, name: str, key: str, *args: Any) -> Any:
    try:
        return rule(key, *args)
    except EcoSpaError as error:
        raise OptimizerStateError(f"{key!r} of {name!r} cannot follow the cut: {error}") from error


def _is_single(value: object) -> bool:
    """Whether ``value`` is one number, or none: it means the same for a smaller parameter."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, bool | int | float | complex | str)


def _unplaced(optimizer: str, name: str, key: str, kind: str, cut: ParameterCut) -> str:
    return (
        f"{optimizer} keeps {key!r} {kind} for {name!r}, and nothing says how that follows the cut from "
        f"{cut.old_shape} to {cut.new_shape}. Say it once, before sparsify:\n\n"
        f"    from ecospa_fx.optim_state import register_optimizer_state\n\n"
        f"    @register_optimizer_state({optimizer})\n"
        f"    def {optimizer.lower()}_state(key, value, param, cut):\n"
        f"        return ... if key == {key!r} else NotImplemented  # see ParameterCut\n"
    )
