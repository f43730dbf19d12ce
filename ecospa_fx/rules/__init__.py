"""The op-rule table: how labels flow through each operator, and how its node shrinks.

Every module of this package adds the rules of one family; importing the package imports them all.
"""

from importlib import import_module
from pkgutil import iter_modules

from ecospa_fx.rules.registry import TABLE, Rule, RuleTable, rule

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["TABLE", "Rule", "RuleTable", "rule"]
