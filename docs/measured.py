"""What a technique cost and gave, read from the JSON files of benchmarks/: short for a table, at length for a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
EN = {
    "none": "not measured",
    "seconds": "{0:.1f} s of CPU",
    "epochs": "{0} + sparse training",
    "minutes": "{0:.0f} min of CPU, training included",
    "untrained": "no training",
    "pair": "VGG-11 {0}, ResNet-20 {1}",
    "missed": "budget missed",
    "below": "below random in {0} of {1}",
    "rate": "{0}: {1:.1f}× fewer weights, {2} % error",
    "bytes": "{0}: {1:.1f}× fewer bytes, our codec {2:.1f}×, {3} % error",
    "ticket": "LeNet-300-100, {0:.1f} % of weights: {1} % error, redrawn {2} %",
    "kept": "LeNet-300-100, 20 % of weights, no fine-tuning: {0} % error",
    "merged": "LeNet-300-100, half of its neurons: {0} % error, random {1} %",
}
KO = {
    "none": "측정하지 않음",
    "seconds": "CPU {0:.1f}초",
    "epochs": "{0} + 희소 학습",
    "minutes": "학습까지 CPU {0:.0f}분",
    "untrained": "학습 없음",
    "pair": "VGG-11 {0}, ResNet-20 {1}",
    "missed": "예산 미달성",
    "below": "{1}곳 중 {0}곳에서 무작위보다 낮음",
    "rate": "{0}: 가중치 {1:.1f}분의 1, 오류율 {2} %",
    "bytes": "{0}: 바이트 {1:.1f}분의 1, 자체 코덱(codec) {2:.1f}분의 1, 오류율 {3} %",
    "ticket": "LeNet-300-100, 가중치 {0:.1f} %: 오류율 {1} %, 다른 초깃값 {2} %",
    "kept": "LeNet-300-100, 가중치 20 %, 미세 조정 없음: 오류율 {0} %",
    "merged": "LeNet-300-100, 뉴런 절반: 오류율 {0} %, 무작위 {1} %",
}
Words = dict[str, str]
Row = dict[str, Any]


@cache
def results(name: str) -> Any:
    """Returns what one benchmark wrote."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean ± standard deviation, or the one value."""
    return " ± ".join(f"{each(values):.{digits}f}" for each in (fmean, stdev)[: len(values)])


# --- the benchmark of structured methods ---------------------------------------------------------------------------


def pruned(method: str, network: str, budget: float) -> list[Row]:
    """Returns a row for each seed, or none where the method could not be driven to the budget."""
    rows = [row for row in results("structured")["pruned"] if (row["network"], row["budget"]) == (network, budget)]
    mine = [row for row in rows if row["method"] == method]
    return mine if all("after" in row and row["macs_kept"] <= budget * (1 + 1e-9) for row in mine) else []


def settings() -> list[tuple[str, float]]:
    """Returns the networks and the fractions of their MACs that are kept, as (network, fraction)."""
    return list(dict.fromkeys((row["network"], row["budget"]) for row in results("structured")["pruned"]))


def accuracy(rows: Sequence[Row], when: str) -> list[float]:
    """Returns the accuracy of each seed on test images, ``"before"`` or ``"after"`` fine-tuning."""
    return [row[when]["test"] for row in rows]


def below(method: str) -> tuple[int, int]:
    """Returns in how many settings the fine-tuned mean is below that of random pruning, and how many there are."""
    both = [[pruned(each, *setting) for each in (method, "random")] for setting in settings()]
    means = [[fmean(accuracy(rows, "after")) for rows in pair] for pair in both if all(pair)]
    return sum(mine < chance for mine, chance in means), len(means)


def unpruned(network: str) -> list[float]:
    """Returns the accuracy of each seed before pruning."""
    return [row["accuracy"]["test"] for row in results("structured")["base"] if row["network"] == network]


def structured(words: Words, method: str) -> tuple[str, str]:
    """VGG-11 and ResNet-20 at half of their MACs."""
    half = [pruned(method, network, budget) for network, budget in settings() if budget == 0.5]
    cost = words["seconds"].format(fmean(rows[0]["prune_seconds"] for rows in half))
    if half[0][0]["extra_epochs"]:
        cost = words["epochs"].format(cost)
    pair = (" → ".join(f"{fmean(accuracy(rows, when)):.1f}" for when in ("before", "after")) for rows in half)
    result = words["pair"].format(*pair)
    worse, of = below(method)
    return cost, f"{result}; **{words['below'].format(worse, of)}**" if worse else result


# --- LeNets on MNIST ---------------------------------------------------------------------------------------------


def lenets(pattern: str) -> list[Row]:
    """Returns the results of the cells, a seed each, whose names match the pattern."""
    return [row for name, row in results("lenets").items() if re.fullmatch(pattern + r"-s\d+-\w+", name)]


def minutes(words: Words, rows: Sequence[Row]) -> str:
    """Returns the processor time of one seed."""
    return words["minutes"].format(fmean(row["processor_seconds"] for row in rows) / 60)


def magnitude(words: Words, _: str) -> tuple[str, str]:
    """A twelfth of the weights, pruned and retrained in turn."""
    rows = lenets("lenet300-mnist-magnitude_ratios-sparse")
    rate = 1 / fmean(row["kept"] for row in rows)
    dense = fmean(row["processor_seconds"] for row in lenets("lenet300-mnist-dense"))
    cost = words["minutes"].format((dense + fmean(row["processor_seconds"] for row in rows)) / 60)
    return cost, words["rate"].format("LeNet-300-100", rate, spread([row["error"] for row in rows]))


def deep_compression(words: Words, _: str) -> tuple[str, str]:
    """The whole file, in the paper's format and in ours, from the pruned network."""
    rows = lenets("lenet300-mnist-magnitude-shared")
    papers, ours = (rows[0]["dense_bytes"] / fmean(row[f"{mode}_bytes"] for row in rows) for mode in ("paper", "ans"))
    seconds = words["seconds"].format(fmean(row["processor_seconds"] for row in rows))
    return seconds, words["bytes"].format("LeNet-300-100", papers, ours, spread([row["error"] for row in rows]))


def lottery(words: Words, _: str) -> tuple[str, str]:
    """Nine rounds, against other initial weights for the same masks."""
    rows = lenets("lenet300-mnist-tickets")
    mine, other = (spread([row[arm]["9"] for row in rows]) for arm in ("ticket", "other"))
    return minutes(words, rows), words["ticket"].format(100 * rows[0]["left"]["9"], mine, other)


def curvature(words: Words, method: str) -> tuple[str, str]:
    """A fifth of the weights, nothing trained afterwards."""
    errors = [row["test"][method][3] for row in lenets("lenet300-mnist_held-deleted")]
    return words["untrained"], words["kept"].format(spread(errors))


def merging(words: Words, _: str) -> tuple[str, str]:
    """Half of the neurons, against random ones."""
    rows = lenets("lenet300-mnist-merged")
    return words["untrained"], words["merged"].format(*(spread([row[arm][2][1] for row in rows]) for arm in _ARMS))


def vardrop(words: Words, _: str) -> tuple[str, str]:
    """By the method's own threshold, one seed."""
    row = lenets("lenet300-mnist-vardrop-gated")[-1]
    return minutes(words, [row]), words["rate"].format("LeNet-300-100", 1 / row["kept"], f"{row['error']:.2f}")


def l0(words: Words, _: str) -> tuple[str, str]:
    """With gates on inputs and features too, one seed."""
    row = min(lenets("lenet5-mnist-l0-gated"), key=lambda row: row["error"])
    return minutes(words, [row]), words["rate"].format("LeNet-5", 1 / row["kept"], f"{row['error']:.2f}")


_ARMS = ("merged", "random")
_FUNCTIONS: dict[str, Callable[[Words, str], tuple[str, str]]] = {
    function.__name__: function
    for function in (structured, magnitude, deep_compression, lottery, curvature, merging, vardrop, l0)
}


def in_short(words: Words, name: str | None, method: str) -> tuple[str, str]:
    """Returns cost and result of one technique, for a table."""
    return _FUNCTIONS[name](words, method) if name else (words["none"], words["none"])


# --- the pages of the methods --------------------------------------------------------------------------------------


def at_length(method: str) -> list[str]:
    """Returns a Markdown line for each measurement of a method, losses included."""
    return [*_structured(method), *_arms(method), *_seeds(method), *_mlp(method)]


def _structured(method: str) -> list[str]:
    lines = []
    for network, budget in settings():
        place = f"**{network}, {100 * budget:g} % of MACs** (unpruned {fmean(unpruned(network)):.1f} %)"
        rows, chance = (pruned(each, network, budget) for each in (method, "random"))
        if not any(row["method"] == method for row in results("structured")["pruned"]):
            continue
        if not rows:
            lines.append(f"{place}: the budget was not met.")
            continue
        (before, after), (low, high) = (
            [spread(accuracy(each, when), 1) for when in ("before", "after")] for each in (rows, chance)
        )
        extra = rows[0]["extra_epochs"]
        cost = f"{rows[0]['prune_seconds']:.1f} s of CPU" + (
            f" after {extra} epoch(s) of sparse training" * bool(extra)
        )
        loses = fmean(accuracy(rows, "after")) < fmean(accuracy(chance, "after"))
        lines.append(
            f"{place}: {before} % right after pruning (random: {low}), {after} % fine-tuned (random: {high}); {cost}."
            + " **Below random.**" * loses
        )
    return lines


def _arms(method: str) -> list[str]:
    lines = []
    for title, found in results("arms").items():
        rows = [row for row in found["rows"] if row["method"] == method and row["arm"] not in ("unpruned", "pruned")]
        arms = ", ".join(f"{row['label']} {row['accuracy']['mean']:.1f} %" for row in rows)
        if rows:
            lines.append(f"**{title}, {rows[0]['goal']}**, three seeds: {arms}.")
    return lines


def _seeds(method: str) -> list[str]:
    """Right after pruning, ten seeds."""
    lines = []
    for title, rows in results("mnist_seeds").items():
        for goal in dict.fromkeys(row["goal"] for row in rows if row["method"] == method):
            mine, chance = (
                next(row["accuracy"] for row in rows if (row["method"], row["goal"]) == (each, goal))
                for each in (method, "random")
            )
            loses = " **Below random.**" * (mine["mean"] < chance["mean"])
            lines.append(
                f"**{title}, {goal}**, ten seeds, right after pruning: {mine['mean']:.1f} ± {mine['std']:.1f} % "
                f"(random: {chance['mean']:.1f} ± {chance['std']:.1f}).{loses}"
            )
    return lines


def _mlp(method: str) -> list[str]:
    lines = []
    for row in results("mlp"):
        if row["method"] == method:
            pruned_, tuned = (spread([seed[key] for seed in row["seeds"]]) for key in ("pruned", "finetuned"))
            removed = min(seed["removed"] for seed in row["seeds"])
            lines.append(
                f"**MLP 784-500-300-10 on mnist, {removed:.1f} % of the weights pruned**, five seeds: {pruned_} % "
                f"error right after pruning, {tuned} % fine-tuned."
            )
    return lines
