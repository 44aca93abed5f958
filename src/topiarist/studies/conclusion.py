"""What a study says, over all its prunings and by method: differences pooled over the prunings, and their words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from topiarist.studies.arms import ARMS, FROM_SCRATCH, PAIRS, phrase
from topiarist.studies.statistics import paired, verdict

Row = Mapping[str, Any]
Arms = Mapping[str, Row]
Kind = tuple[str, str, str, str]
"""Network, data, method and goal: one pruning."""

NAMED = 6
"""Up to so many prunings a conclusion tells by name which of them point where; of more it tells how many."""


def prunings(rows: Sequence[Row]) -> dict[Kind, dict[str, Row]]:
    """Each pruning with its rows by arm; the unpruned network is the plainly trained one for all of a place."""
    plain = {(row["network"], row["data"]): row for row in rows if row["method"] == "none"}
    found: dict[Kind, dict[str, Row]] = {}
    for row in rows:
        if row["method"] != "none":
            place = row["network"], row["data"]
            arms = found.setdefault((*place, row["method"], row["goal"]), {"unpruned": plain[place]})
            arms.setdefault(row["arm"], row)
    return found


def overall(rows: Sequence[Row], pairs: Sequence[tuple[str, str]] = PAIRS) -> Iterator[dict[str, Any]]:
    """Pairs of arms over all prunings, and over those of each method.

    At each seed that all these prunings have, the difference is their mean, each counting alike; the t interval is that
    of these means over the seeds. Prunings of one seed share its trained network, so that they are no repetitions: only
    seeds are.

    Args:
        rows: of the table.
        pairs: arms to compare.

    Yields:
        The fields of `Difference`, the arms ``a`` and ``b``, ``method`` (empty: all), ``prunings`` (how many), and the
        ``verdict`` in words.
    """
    every = prunings(rows)
    methods = list(dict.fromkeys(kind[2] for kind in every))
    for a, b in pairs:
        for method in ("", *methods):
            both = [(arms[a], arms[b]) for kind, arms in every.items() if method in ("", kind[2]) and {a, b} <= {*arms}]
            both = [(one, two) for one, two in both if _seeds(one) & _seeds(two) and not same(one, two)]
            if ARMS[a].shape == "pruned" and len({two["label"] for _, two in both}) > 1:
                continue  # a pruned shape is to uniform widths what it is not to uniform sparsity, which has fewer MACs
            shared = set.intersection(*(_seeds(one) & _seeds(two) for one, two in both)) if both else set()
            if not shared:
                continue
            left, right = (_averaged(side, shared) for side in zip(*both, strict=True))
            difference = paired(left, right)
            yield {
                "a": a,
                "b": b,
                "method": method,
                "prunings": len(both),
                **asdict(difference),
                "resolved": difference.resolved,
                "verdict": verdict(phrase(a), phrase(b), difference),
            }


def same(one: Row, other: Row) -> bool:
    """Whether a method has narrowed all layers alike, so that its networks from scratch are the uniform ones."""
    alike = one["accuracy"]["seeds"] == other["accuracy"]["seeds"] and one["widths"] == other["widths"]
    return alike and "uniform" in (one["arm"], other["arm"])


def _seeds(row: Row) -> set[str]:
    return set(row["accuracy"]["seeds"])


def _averaged(rows: Sequence[Row], seeds: Iterable[str]) -> dict[int, float]:
    """Seed → mean accuracy of the rows."""
    return {int(seed): fmean(row["accuracy"]["seeds"][seed] for row in rows) for seed in seeds}


def conclude(comparisons: Sequence[Row], pooled: Sequence[Row], failed: Mapping[str, str]) -> list[str]:
    """The conclusion in words.

    First whether fine-tuning was worth more than training the shape from scratch, over all and pruning by pruning, and
    what pruning cost; then what lottery tickets and designed shapes are worth, where there are any; what is missing.
    """
    total = {(entry["a"], entry["b"]): entry for entry in pooled if not entry["method"]}
    sentences = []
    scratch = next((arm for arm in FROM_SCRATCH if ("finetune", arm) in total), None)
    if scratch:
        sentences.append(_worth(total["finetune", scratch]))
        equal = scratch != "scratch_e" and total.get(("finetune", "scratch_e"))
        if equal:
            sentences.append(f"With no more epochs than the unpruned network had, {equal['verdict']}{_average(equal)}.")
        sentences += _by_pruning(comparisons, "finetune", scratch)
    cost = total.get(("finetune", "unpruned"))
    if cost and scratch and cost["resolved"]:
        sentences.append(_sentence(cost))
    if cost and not scratch:
        sentences += [_sentence(cost), *_by_pruning(comparisons, "finetune", "unpruned")]
    for arm in dict.fromkeys(a for a, _ in total if a not in ("finetune", *FROM_SCRATCH)):
        sentences += _of_arm(comparisons, total, arm)
    if failed:
        cells = "1 cell is" if len(failed) == 1 else f"{len(failed)} cells are"
        sentences.append(f"{cells} missing, so that some means rest on fewer seeds: run the study again.")
    if not total:
        sentences.insert(0, "Nothing can be compared yet: no two arms share a finished seed.")
    return sentences


def _of_arm(comparisons: Sequence[Row], total: Mapping[tuple[str, str], Row], arm: str) -> Iterator[str]:
    """Yields what another arm is worth; of a built shape, whether it lies between a uniform one and the pruned one."""
    others = [b for a, b in total if a == arm]
    if ARMS[arm].shape != "built":
        for other in others:
            yield _sentence(total[arm, other])
            yield from _by_pruning(comparisons, arm, other)
    elif "uniform" in others:
        yield _sentence(total[arm, "uniform"])
        direct = next((other for other in FROM_SCRATCH if other in others), None)
        if direct:
            yield _sentence(total[arm, direct])
            yield _between(comparisons, arm, direct)


def _worth(entry: Row) -> str:
    """Was fine-tuning worth more than training the shape from scratch?"""
    told = "training the pruned shape from scratch"
    if not entry["resolved"]:
        return f"Whether fine-tuning was worth more than {told} is open: {entry['verdict']}{_average(entry)}."
    more = "more" if entry["mean"] > 0 else "less"
    return f"Fine-tuning was worth {more} than {told}: {entry['verdict']}{_average(entry)}."


def _sentence(entry: Row) -> str:
    return f"{_capital(entry['verdict'])}{_average(entry)}."


def _average(entry: Row) -> str:
    return f", on average over {entry['prunings']} prunings" if entry["prunings"] > 1 else ""


def _by_pruning(comparisons: Sequence[Row], arm: str, against: str) -> Iterator[str]:
    """For which prunings an arm is ahead, behind, or neither: by network, or in numbers where they are many."""
    entries = [entry for entry in comparisons if (entry["a"], entry["b"], entry["when"]) == (arm, against, "")]
    if len(entries) < 2:
        return
    one, other = phrase(arm), phrase(against)
    if len(entries) > NAMED:
        won, lost, open_ = map(len, _split(entries))
        yield (
            f"Taken one by one, {one} is ahead in {won} of {len(entries)} prunings, {other} in {lost}, and {open_} "
            f"{'is' if open_ == 1 else 'are'} open."
        )
        return
    places = dict.fromkeys((entry["network"], entry["data"]) for entry in entries)
    if len(places) > 1 and not any(entry["resolved"] for entry in entries):
        yield f"Taken one by one, none of the {len(entries)} prunings resolves a difference between {one} and {other}."
        return
    for place in places:
        here = [entry for entry in entries if (entry["network"], entry["data"]) == place]
        ahead, behind, left = _split(here)
        parts = [f"{one} beats {other} for {_named(ahead)}"] if ahead else []
        parts += [f"{other} beats {one} for {_named(behind)}"] if behind else []
        parts += [f"no difference between {one} and {other} is resolved for {_named(left)}"] if left else []
        where = f" ({place[0]} on {place[1]})" if len(places) > 1 else ""
        yield f"{_capital('; '.join(parts))}{where}."


def _split(entries: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Those where the first arm is ahead, those where it is behind, and the open ones."""
    known = [entry for entry in entries if entry["resolved"]]
    ahead = [entry for entry in known if entry["mean"] > 0]
    return ahead, [entry for entry in known if entry["mean"] < 0], [e for e in entries if not e["resolved"]]


def _between(comparisons: Sequence[Row], arm: str, direct: str) -> str:
    """Where an arm's mean lies between those of uniform widths and of the directly pruned shape, and where not."""
    means = {
        other: {
            (entry["network"], entry["data"], entry["method"], entry["goal"]): entry["mean"]
            for entry in comparisons
            if (entry["a"], entry["b"], entry["when"]) == (arm, other, "")
        }
        for other in ("uniform", direct)
    }
    kinds = [kind for kind in means["uniform"] if kind in means[direct]]
    outside = [kind for kind in kinds if not means["uniform"][kind] >= 0 >= means[direct][kind]]
    below = [kind for kind in outside if means["uniform"][kind] < 0]
    told = f"By its mean, {phrase(arm)} comes between {phrase('uniform')} and {phrase(direct)} in "
    told += f"{len(kinds) - len(outside)} of {len(kinds)} prunings"
    if outside:
        below_uniform = f"it is below {phrase('uniform')} in {len(below)}"
        told += f"; {below_uniform}, and above {phrase(direct)} in {len(outside) - len(below)}"
    return f"{told}."


def _named(entries: Sequence[Row]) -> str:
    """Methods by their goals: ``"random and l1 at 50 % of MACs, and magnitude at 10 % of weights"``."""
    goals = {
        entry["goal"]: [other["method"] for other in entries if other["goal"] == entry["goal"]] for entry in entries
    }
    told = [f"{_listed(names)} at {goal}" for goal, names in goals.items()]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])}, and {told[-1]}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
