"""What keeps a network from being pruned at all, in a sentence: the most frequent cause, and what would help."""

from __future__ import annotations

from collections import Counter

from topiarist.graph.graph import Graph

COMMON = ("the network's output", "a kernel's or a feature map's own axis", "its positions do not form")
"""Reasons that every network has."""

EAGER = "write attention as products and a softmax (of transformers: load it with attn_implementation='eager')"
"""What helps where fused attention is in the way."""


def hindrance(graph: Graph) -> str:
    """Returns why no unit of a graph can be pruned, with what would help."""
    nothing = "nothing in this network can be pruned"
    reasons = [pin.reason for pin in graph.pinned]
    operator, _ = next(iter(graph.solution.record.unknown.most_common(1)), ("", 0))
    if graph.kind == "structure" and operator:
        blamed = f"operator without a rule: {operator}"
        where = next((reason for reason in reasons if reason.startswith(blamed)), blamed)
        if any(part in operator for part in ("attn", "attention")):
            return f"{nothing}: it runs an {where}; {EAGER}"
        return (
            f"{nothing}: it runs an {where}; declare its rule with topiarist.rule (see Rules of your own in the "
            "documentation), or write it with operators that have one"
        )
    telling = [reason for reason in reasons if not reason.startswith(COMMON)] or reasons
    if not telling:
        lacking = "residual branches" if graph.kind == "block" else "weights that a product reads"
        return f"{nothing}: it has no {lacking}; give another network or method"
    (often, _), *_ = Counter(reason.partition(" (")[0] for reason in telling).most_common(1)
    first = next(reason for reason in telling if reason.startswith(often))
    help_ = "`topiarist inspect` says what pins each layer"
    if any("<" in reason for reason in telling):  # <stdin>, <string>
        help_ = "write the network in a file: without its source, the sizes in its code cannot be corrected"
    return f"{nothing}, and the most frequent reason is: {first}; {help_}"
