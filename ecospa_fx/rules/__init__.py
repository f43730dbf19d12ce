"""The op-rule table: how labels flow through each operator, and how its node shrinks."""

from ecospa_fx.rules import attention, contractions, creation, layout_ops, pointwise, reductions, views
from ecospa_fx.rules.registry import TABLE, Rule, RuleTable, rule

__all__ = ["TABLE", "Rule", "RuleTable", "attention", "contractions", "creation", "layout_ops", "pointwise",
           "reductions", "rule", "views"]  # fmt: skip
