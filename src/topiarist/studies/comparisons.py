"""Paired comparisons of arms: pruning by pruning, and pooled over all prunings and those of each method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from topiarist.studies.arms import ARMS, PAIRS, phrase
from topiarist.studies.cells import Json
from topiarist.studies.statistics import Difference, paired, verdict

Kind = tuple[str, str, str, str]
"""Network, data, method and budget: one pruning."""


def by_pruning(rows: Sequence[Json]) -> dict[Kind, dict[str, Json]]:
    """Returns the rows of each pruning by arm; ``unpruned`` is the plainly trained network for all of a data set."""
    plain = {(row["network"], row["data"]): row for row in rows if row["method"] == "none"}
    kinds: dict[Kind, dict[str, Json]] = {}
    for row in rows:
        if row["method"] != "none":
            place = row["network"], row["data"]
            arms = kinds.setdefault((*place, row["method"], row["goal"]), {"unpruned": plain[place]})
            arms.setdefault(row["arm"], row)
    return kinds


def compare(rows: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Compares the arms of each pruning, and each method with random pruning.

    Yields:
        ``network``, ``data``, ``method``, ``goal`` (the budget in words), ``when`` (of a comparison with random
        pruning), the arms or methods ``a`` and ``b``, the fields of `Difference`, whether it is ``significant``, and
        the ``verdict`` in words.
    """
    kinds = by_pruning(rows)
    for (network, data, method, goal), arms in kinds.items():
        for a, b in PAIRS:
            if a in arms and b in arms and not same_networks(arms[a], arms[b]):
                yield from _compared(arms[a], arms[b], {"a": a, "b": b}, (phrase(a), phrase(b)))
        random = kinds.get((network, data, "random", goal), {}) if method != "random" else {}
        for arm, when in (("pruned", "before any retraining"), ("finetune", "after fine-tuning")):
            if arm in random and arm in arms:
                names = {"a": method, "b": "random"}
                yield from _compared(arms[arm], random[arm], names, (method, "random"), when)


def _compared(
    row: Json, other: Json, names: Json, phrases: tuple[str, str], when: str = ""
) -> Iterator[dict[str, Any]]:
    """Yields the comparison of two rows, if they share a seed."""
    seeds = _seeds(row) & _seeds(other)
    if seeds:
        place = {key: row[key] for key in ("network", "data", "method", "goal")}
        entry = _described(paired(_averaged([row], seeds), _averaged([other], seeds)), phrases)
        if when:
            entry["verdict"] = f"{when}, {entry['verdict']}"
        yield {**place, "when": when, **names, **entry}


def pool(rows: Sequence[Json], pairs: Sequence[tuple[str, str]] = PAIRS) -> Iterator[dict[str, Any]]:
    """Compares pairs of arms over all prunings, and over those of each method.

    At each seed that all these prunings have, the difference is their mean, with equal weights; the t interval is that
    of these means over the seeds. Prunings of one seed share its trained network, so only seeds are repetitions.

    Args:
        rows: of the table.
        pairs: arms to compare.

    Yields:
        The fields of `Difference`, the arms ``a`` and ``b``, ``method`` (empty: all), ``prunings`` (how many),
        whether the difference is ``significant``, and the ``verdict`` in words.
    """
    kinds = by_pruning(rows)
    for a, b in pairs:
        for method in ("", *dict.fromkeys(kind[2] for kind in kinds)):
            both = [(arms[a], arms[b]) for kind, arms in kinds.items() if method in ("", kind[2]) and {a, b} <= {*arms}]
            both = [(one, other) for one, other in both if _seeds(one) & _seeds(other)]
            both = [(one, other) for one, other in both if not same_networks(one, other)]
            if ARMS[a].shape == "pruned" and len({other["label"] for _, other in both}) > 1:
                continue  # uniform sparsity has fewer MACs than uniform widths: no common baseline of a pruned shape
            seeds = set.intersection(*(_seeds(one) & _seeds(other) for one, other in both)) if both else set()
            if seeds:
                left, right = (_averaged(side, seeds) for side in zip(*both, strict=True))
                entry = _described(paired(left, right), (phrase(a), phrase(b)))
                yield {"a": a, "b": b, "method": method, "prunings": len(both), **entry}


def same_networks(one: Json, other: Json) -> bool:
    """Returns whether a method narrowed all layers alike, so that its networks from scratch are the uniform ones."""
    alike = one["accuracy"]["seeds"] == other["accuracy"]["seeds"] and one["widths"] == other["widths"]
    return alike and "uniform" in (one["arm"], other["arm"])


def _described(difference: Difference, phrases: tuple[str, str]) -> dict[str, Any]:
    text = verdict(*phrases, difference)
    return {**asdict(difference), "significant": difference.significant, "verdict": text}


def _seeds(row: Json) -> set[str]:
    return set(row["accuracy"]["seeds"])


def _averaged(rows: Sequence[Json], seeds: Iterable[str]) -> dict[int, float]:
    """Returns seed → mean accuracy of the rows."""
    return {int(seed): fmean(row["accuracy"]["seeds"][seed] for row in rows) for seed in seeds}
