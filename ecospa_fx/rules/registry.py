"""The one table of op rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ecospa_fx.errors import RuleError
from ecospa_fx.rules.call import Arrays, Call

if TYPE_CHECKING:
    from ecospa_fx.rules.site import Site

Flow = Callable[[Call], Arrays | list[Arrays]]
Rewrite = Callable[["Site"], Any]


@dataclass(frozen=True)
class Rule:
    """Both halves of what is known about an operator.

    Attributes:
        target: the operator's name, such as ``aten.linear.default``.
        flow: from a call on label arrays to the label arrays of its output (a list for several).
        rewrite: how the node changes when they shrink; None where lining up its operands is all.
    """

    target: str
    flow: Flow
    rewrite: Rewrite | None = None


class RuleTable:
    """Rules by operator name. Refuses doubles, and can be enumerated."""

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def add(self, rule: Rule, replace: bool = False) -> None:
        """Add ``rule``.

        Raises:
            RuleError: the operator has a rule already, and ``replace`` is not set.
        """
        if rule.target in self._rules and not replace:
            raise RuleError(f"{rule.target} has a rule already; pass replace=True to change it")
        self._rules[rule.target] = rule

    def find(self, target: str) -> Rule | None:
        """The rule of ``target``; an in-place operator shares its functional twin's."""
        return self._rules.get(target) or self._rules.get(_functional(target))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules.values())

    def __len__(self) -> int:
        return len(self._rules)


def _functional(target: str) -> str:
    """``aten.add_.Tensor`` → ``aten.add.Tensor``."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    return f"{namespace}.{name[:-1]}.{overload}" if name.endswith("_") and not name.endswith("__") else target


TABLE = RuleTable()


def rule(*targets: str, rewrite: Rewrite | None = None, replace: bool = False) -> Callable[[Flow], Flow]:
    """Teach the table how labels flow through one or more operators.

    Args:
        targets: operator names as they print in a graph, such as ``"mylib.myop.default"``.
        rewrite: the second half, for operators whose arguments name sizes.
        replace: override a rule that exists.

    Returns:
        A decorator for the flow function.

    Example:
        >>> from ecospa_fx.rules.meet import either
        >>> from ecospa_fx.rules.pointwise import through
        >>> @rule("mylib.swish.default")
        ... def swish(call):
        ...     return through(call, "self")
    """

    def register(flow: Flow) -> Flow:
        for target in targets:
            TABLE.add(Rule(target, flow, rewrite), replace)
        return flow

    return register
