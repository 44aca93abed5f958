"""Rules: what each operator does with labels. One file for each family of operators; each rule registers itself."""

from topiarist.graph.rules import contract, indexing, movement, ordered, pointwise, recurrent, vision
from topiarist.graph.rules.own import Operation, is_own, rule
from topiarist.graph.rules.pointwise import undefined_after
from topiarist.graph.rules.registry import RULES, Call, Rule, apply_rule, rule_for, rule_of

__all__ = [
    "RULES",
    "Call",
    "Operation",
    "Rule",
    "apply_rule",
    "contract",
    "indexing",
    "is_own",
    "movement",
    "ordered",
    "pointwise",
    "recurrent",
    "rule",
    "rule_for",
    "rule_of",
    "undefined_after",
    "vision",
]
