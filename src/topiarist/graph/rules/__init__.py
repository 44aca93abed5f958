"""Rules: what each operator does with labels. One file for each family of operators; each rule registers itself."""

from topiarist.graph.rules.registry import Call, Rule, apply_rule, rule, rule_of

__all__ = ["Call", "Rule", "apply_rule", "rule", "rule_of"]
