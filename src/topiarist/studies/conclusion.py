"""The conclusion of a study in words: what fine-tuning, lottery tickets and built shapes are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from topiarist.studies.arms import ARMS, FROM_SCRATCH, phrase
from topiarist.studies.cells import Json

NAMED = 6
"""Of up to so many prunings a conclusion names those with a difference; of more it says how many."""


def conclude(comparisons: Sequence[Json], pooled: Sequence[Json], failed: Mapping[str, str]) -> list[str]:
    """Returns the conclusion as sentences.

    First whether fine-tuning was worth more than training the shape from scratch, over all and pruning by pruning, and
    what pruning cost; then what the other arms are worth, where there are any; then what is missing.
    """
    total = {(entry["a"], entry["b"]): entry for entry in pooled if not entry["method"]}
    sentences = []
    scratch = next((arm for arm in FROM_SCRATCH if ("finetune", arm) in total), None)
    if scratch:
        sentences.append(_inherited_weights(total["finetune", scratch]))
        equal = scratch != "scratch_e" and total.get(("finetune", "scratch_e"))
        if equal:
            sentences.append(f"For no more epochs than the unpruned network, {equal['verdict']}{_average(equal)}.")
        sentences += _by_pruning(comparisons, "finetune", scratch)
    cost = total.get(("finetune", "unpruned"))
    if cost and scratch and cost["significant"]:
        sentences.append(_sentence(cost))
    if cost and not scratch:
        sentences += [_sentence(cost), *_by_pruning(comparisons, "finetune", "unpruned")]
    for arm in dict.fromkeys(a for a, _ in total if a not in ("finetune", *FROM_SCRATCH)):
        sentences += _of_arm(comparisons, total, arm)
    if failed:
        cells = "1 cell is" if len(failed) == 1 else f"{len(failed)} cells are"
        sentences.append(f"{cells} missing, so some means are over fewer seeds; run the study again.")
    if not total:
        sentences.insert(0, "Nothing can be compared yet: no two arms share a finished seed.")
    return sentences


def _inherited_weights(entry: Json) -> str:
    """Returns whether fine-tuning was worth more than training the shape from scratch."""
    scratch = "training the pruned shape from scratch"
    if not entry["significant"]:
        return f"Whether fine-tuning was worth more than {scratch} is open: {entry['verdict']}{_average(entry)}."
    more = "more" if entry["mean"] > 0 else "less"
    return f"Fine-tuning was worth {more} than {scratch}: {entry['verdict']}{_average(entry)}."


def _of_arm(comparisons: Sequence[Json], total: Mapping[tuple[str, str], Json], arm: str) -> Iterator[str]:
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


def _sentence(entry: Json) -> str:
    return f"{_capital(entry['verdict'])}{_average(entry)}."


def _average(entry: Json) -> str:
    return f", on average over {entry['prunings']} prunings" if entry["prunings"] > 1 else ""


def _by_pruning(comparisons: Sequence[Json], arm: str, other: str) -> Iterator[str]:
    """Yields for which prunings an arm is better, worse, or neither: by network, or in numbers where they are many."""
    entries = [entry for entry in comparisons if (entry["a"], entry["b"], entry["when"]) == (arm, other, "")]
    if len(entries) < 2:
        return
    one, two = phrase(arm), phrase(other)
    if len(entries) > NAMED:
        won, lost, rest = map(len, _split(entries))
        yield (
            f"Pruning by pruning, {one} is significantly better in {won} of {len(entries)}, {two} in {lost}, and "
            f"{rest} {'is' if rest == 1 else 'are'} open."
        )
        return
    pairs = dict.fromkeys((entry["network"], entry["data"]) for entry in entries)
    if len(pairs) > 1 and not any(entry["significant"] for entry in entries):
        yield f"None of the {len(entries)} prunings alone shows a significant difference between {one} and {two}."
        return
    for network, data in pairs:
        here = [entry for entry in entries if (entry["network"], entry["data"]) == (network, data)]
        better, worse, open_ = map(_named, _split(here))
        parts = [f"{one} outperforms {two} for {better}"] if better else []
        parts += [f"{two} outperforms {one} for {worse}"] if worse else []
        parts += [f"no significant difference between {one} and {two} for {open_}"] if open_ else []
        where = f" ({network} on {data})" if len(pairs) > 1 else ""
        yield f"{_capital('; '.join(parts))}{where}."


def _split(entries: Sequence[Json]) -> tuple[list[Json], list[Json], list[Json]]:
    """Returns those where the first arm is better, those where it is worse, and the others."""
    significant = [entry for entry in entries if entry["significant"]]
    return (
        [entry for entry in significant if entry["mean"] > 0],
        [entry for entry in significant if entry["mean"] < 0],
        [entry for entry in entries if not entry["significant"]],
    )


def _between(comparisons: Sequence[Json], arm: str, direct: str) -> str:
    """Returns in how many prunings the mean of an arm lies between uniform widths and the directly pruned shape."""
    uniform, pruned = (
        {
            (entry["network"], entry["data"], entry["method"], entry["goal"]): entry["mean"]
            for entry in comparisons
            if (entry["a"], entry["b"], entry["when"]) == (arm, other, "")
        }
        for other in ("uniform", direct)
    )
    kinds = uniform.keys() & pruned.keys()
    outside = [kind for kind in kinds if not uniform[kind] >= 0 >= pruned[kind]]
    below = [kind for kind in outside if uniform[kind] < 0]
    text = (
        f"The mean of {phrase(arm)} lies between {phrase('uniform')} and {phrase(direct)} in "
        f"{len(kinds) - len(outside)} of {len(kinds)} prunings"
    )
    if outside:
        text += (
            f"; it is below {phrase('uniform')} in {len(below)}, and above {phrase(direct)} in "
            f"{len(outside) - len(below)}"
        )
    return f"{text}."


def _named(entries: Sequence[Json]) -> str:
    """Returns methods by their budgets: ``"random and l1 at 50 % of MACs, and magnitude at 10 % of weights"``."""
    budgets = dict.fromkeys(entry["goal"] for entry in entries)
    methods = {goal: [entry["method"] for entry in entries if entry["goal"] == goal] for goal in budgets}
    parts = [f"{_listed(names)} at {goal}" for goal, names in methods.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}" if parts else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
