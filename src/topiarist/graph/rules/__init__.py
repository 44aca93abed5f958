"""Rules: what each operator does with labels. One file for each family of operators; each rule registers itself."""

from topiarist.graph.rules import contract, movement, pointwise, recurrent
from topiarist.graph.rules.pointwise import undefined_after
from topiarist.graph.rules.registry import RULES, Call, Rule, apply_rule, rule, rule_of

__all__ = [
    "RULES", "Call", "Rule", "apply_rule", "contract", "movement", "pointwise", "recurrent", "rule", "rule_of",
    "undefined_after",
]  # fmt: skip
