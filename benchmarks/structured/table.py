"""The report: Markdown to read and JSON to reuse, from what the run's folder holds."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plan import BUDGETS, PEER, SCRATCH, Setting, ranks
from results import Record, against_random, by_seed, duel, holds

from topiarist.studies import Difference, paired, summarise, verdict

PACKAGES = ("topiarist", "torch-pruning", "torch", "numpy")
MARGIN = 0.3
"""Points by which ours may be behind theirs and still count as non-inferior."""


PART = (
    "A run of some methods alone. [Every structured method](structured.md) has the others, from an earlier run; where "
    "both have a row of a method, the one here supersedes the other."
)
CHOICES = {
    "group_lasso": "`group_lasso` penalises what reads a channel, as its documentation advises where batch norms undo "
    "the size of filters.",
    "l0": "`l0` takes Adam with lr 0.001 in its extra epochs, as its documentation advises, with gates that start "
    "nearly open (`dropout` 0.1, `lam` 1): they move too little to shut, but far enough for a ranking.",
    "lcp": "`lcp` learns a global ranking of its own, and is run once.",
    "sfp": "`sfp` trains for each budget at the rate that meets it.",
}
"""Our method → what a reader should know of how it is run."""


SFP_NOTE = (
    "Ours ranked by one allocation each, the method's own, where Torch-Pruning's tried both rankings. "
    "`sfp` on ResNet-20 kept the root of the MACs in training, 71 and 55 % of the filters, where the budgets "
    "keep 46 and 26 % of the first convolutions, which alone are cut there; and it softened the residual streams"
    " too. `lcp` was run while the steps of its shifts shrank. `group_lasso` penalised filters, whose size a batch "
    "norm undoes; its penalty and that of `slimming` acted on the residual streams too. All of this is mended "
    "since, and run [again](structured_again.md), with `l0`."
)
"""Of the numbers of a run in which ours tried no rankings; a later one has other words, see `_ours`."""


def machine(workers: int, threads: int) -> dict[str, Any]:
    """Processor, cores and versions; nothing that names the host."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    made = {"processor": name or platform.machine(), "cores": os.cpu_count(), "workers": workers, "threads": threads}
    return {**made, **versions, "python": platform.python_version()}


def write(found: dict[str, Any], settings: Iterable[Setting], stem: Path, command: str, *, part: bool = False) -> None:
    """``STEM.md`` and ``STEM.json``; ``part`` says of a run of some methods that it is one."""
    settings = tuple(settings)
    lines = ["# Some structured methods again, and Torch-Pruning's beside them", "", PART, ""]
    if not part:
        lines = ["# Every structured method, and Torch-Pruning beside them", ""]
    lines += [*_about(found, settings, command), ""]
    lines += ["## Conclusion", "", *_conclusion(found, settings), ""]
    for setting in settings:
        for macs in BUDGETS:
            lines += _table(found, setting, macs)
    lines += [*_random_table(found, "before"), "", *_random_table(found, "after"), ""]
    lines += _scratch_table(found, settings) if found["scratch"] else []
    stem.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


def _about(found: dict[str, Any], settings: tuple[Setting, ...], command: str) -> list[str]:
    head = found["machine"]
    versions = ", ".join(f"{name} {head[name]}" for name in (*PACKAGES, "python"))
    seeds = sorted({row["seed"] for row in found["base"]})
    trained = sorted({row["method"] for row in found["pruned"] if row["extra_epochs"]})
    lines = [
        "Accuracy in per cent of the test images, mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds)) or '(none yet)'}. All methods of a seed start from the same trained network, are "
        "driven to the same MACs (convolutions and linear layers, counted by torch in the same way on both sides) and "
        "are fine-tuned alike. Names that begin with `tp:` are Torch-Pruning's.",
        "",
    ]
    for setting in settings:
        lines += [_recipe(setting), ""]
    return [
        *lines,
        f"Methods with sparse training get the same extra epochs on both sides: {', '.join(trained) or 'none'}. "
        "All that measure see the same training images. `s` is the CPU time of one pruning at the first seed, "
        "one at a time and each after a first one, sparse training left out: "
        "ours with tracing and the proof, Torch-Pruning's with tracing. `proof` is the largest relative difference "
        "between cut and mask in float64, over the seeds.",
        "",
        _peer({row["method"] for row in found["pruned"]}),
        "",
        _ours(found["pruned"]),
        "",
        f"Machine: {head['processor']}, {head['cores']} cores, {head['workers']} workers of {head['threads']} threads; "
        f"{found['cpu_hours']:.2f} hours of CPU time in all cells, the additional seeds aside, with other work beside. "
        f"Versions: {versions}. Made by `{command}`.",
    ]


def _peer(names: set[str]) -> str:
    told = [
        "How Torch-Pruning is driven: importances with their defaults (`group_norm` is its GroupNormPruner, `bn_scale` "
        "its BNScalePruner, each with its own sparse training), small steps (400 to the whole network) until it keeps "
        "just under the budget. Its CIFAR scripts rank globally, its other examples locally: both are tried, and "
        "the one that is better on the held-out images right after pruning goes on. On ResNets whose shortcuts append "
        "zeros its graph does not follow that padding: both sides cut the first convolution of each block alone there, "
        f"as in Li et al. (2017){', but for `sss`, which takes whole blocks' if 'sss' in names else ''}; this was "
        "decided after a first run, in which ours cut the residual streams as well and were about two points behind."
    ]
    if "slimming+lasso" in names:
        told += [
            "The pair `slimming+lasso` (the one chooses, the other refits what is left) was added after the first five "
            "seeds of all others were seen."
        ]
    if "tp:hessian" in names:
        told += [
            "Its Hessian importance is given the mean squared gradients that its documentation describes, since "
            "`accumulate_grad` of 1.6.1 keeps those of the last example only."
        ]
    return " ".join(told)


def _ours(rows: list[Record]) -> str:
    """How ours rank, and what was chosen for single methods."""
    mine = {row["method"] for row in rows if not row["method"].startswith(PEER)}
    ranked = [row for row in rows if "after" in row and ranks(row["method"])]
    if ranked and not any("ranking" in row for row in ranked):
        return SFP_NOTE
    told = [
        "How ours are driven: those that rank units by scores try both rankings too, local (uniform allocation: the "
        "same fraction of each group) and global, and the one that is better on the held-out images right after "
        "pruning is kept, local if they are equal. So does `random`, the baseline. The column `s` has the time of the "
        "one that is kept."
    ]
    told += [words for name, words in CHOICES.items() if name in mine]
    if alone := sorted(mine & {"lasso", "pfa", "srinivas_babu", "thinet"}):
        names = ", ".join(f"`{name}`" for name in alone)
        told += [f"Tried with uniform allocation alone, since they select within a group: {names}."]
    return " ".join(told)


def _recipe(setting: Setting) -> str:
    def told(recipe: Any) -> str:
        return ", ".join(f"{key} {value}" for key, value in recipe.items())

    return (
        f"- {setting.title} on {setting.data}: {setting.images:,} training, {setting.held:,} held-out and "
        f"{setting.test:,} test images. Training: {told(setting.base)}. Extra epochs: {told(setting.extra)}. "
        f"Fine-tuning on {setting.tune:,} of the images: {told(setting.finetune)}. Measured on {setting.measure:,}."
    )


def _rows(found: dict[str, Any], setting: Setting, macs: float) -> list[Record]:
    return [row for row in found["pruned"] if (row["network"], row["budget"]) == (setting.title, macs)]


def _conclusion(found: dict[str, Any], settings: tuple[Setting, ...]) -> list[str]:
    lines = []
    for setting in settings:
        for macs in BUDGETS:
            for part, chosen in (("test", "highest mean on the test images"), ("held", "chosen on held-out images")):
                if (fight := duel(_rows(found, setting, macs), part)) is not None:
                    mine, its, difference = fight
                    lines.append(
                        f"- {setting.title}, {100 * macs:g} % of MACs, {chosen}: {verdict(mine, its, difference)}; "
                        f"{_margin(difference)}."
                    )
                    if part == "test":
                        lines += _final(found, setting, macs, mine, its)
    lines += _random_lines(found)
    amiss = sorted({row["method"] for row in found["pruned"] if not holds(row)})
    if amiss:
        lines.append(f"- Not driven to the budget everywhere (see the tables' notes): {', '.join(amiss)}.")
    return lines or ["- Nothing can be said yet."]


def _random_lines(found: dict[str, Any]) -> list[str]:
    """Every loss to random of either side, resolved or not, right after pruning and after fine-tuning."""
    lines = []
    for when, title in (("before", "Right after pruning"), ("after", "After fine-tuning")):
        all_gains = sorted(against_random(found["pruned"], when).items())
        for side, whose in ((False, "our methods"), (True, "Torch-Pruning's")):
            gains = {name: gain for name, gain in all_gains if name.startswith(PEER) is side}
            if gains:
                lines.append(f"- {title}, on average against random, of {whose} {_lost(gains)}.")
    return lines


def _lost(gains: dict[str, Difference]) -> str:
    def told(names: list[str]) -> str:
        return ", ".join(f"{name} {gains[name].mean:+.1f}".replace("-", "−") for name in names)

    lost = [name for name, gain in gains.items() if gain.mean <= 0 and gain.significant]
    behind = [name for name, gain in gains.items() if gain.mean <= 0 and not gain.significant]
    ahead = [name for name, gain in gains.items() if gain.mean > 0 and not gain.significant]
    parts = [f"lose to it: {told(lost)} points" if lost else "none loses to it, resolved"]
    parts += [f"behind, but not resolved: {told(behind)}"] if behind else []
    parts += [f"ahead, but not resolved: {told(ahead)}"] if ahead else []
    return "; ".join(parts)


def _final(found: dict[str, Any], setting: Setting, macs: float, mine: str, its: str) -> list[str]:
    rows = [row for row in found["finals"] if (row["network"], row["budget"]) == (setting.title, macs)]
    accuracy = by_seed(rows, lambda row: float(row["after"]["test"]))
    if len(accuracy.get(mine, {}).keys() & accuracy.get(its, {}).keys()) <= len({row["seed"] for row in found["base"]}):
        return []
    known = {row["seed"] for row in found["base"]}
    fresh = {name: {s: a for s, a in accuracy[name].items() if s not in known} for name in (mine, its)}
    difference, alone = paired(accuracy[mine], accuracy[its]), paired(fresh[mine], fresh[its])
    return [
        f"  - The same two on {difference.n} seeds: {verdict(mine, its, difference)}; {_margin(difference)}. On the "
        f"{alone.n} seeds that chose neither alone: {verdict(mine, its, alone)}."
    ]


def _margin(difference: Difference) -> str:
    if difference.low is None:
        return "one seed gives no interval"
    shown = "non-inferior" if difference.low >= -MARGIN else "non-inferiority not shown"
    return f"{shown} (margin {MARGIN} points)"


def _table(found: dict[str, Any], setting: Setting, macs: float) -> list[str]:
    rows = _rows(found, setting, macs)
    whole = [row["accuracy"]["test"] for row in found["base"] if row["network"] == setting.title]
    if not rows:
        return []
    heading = f"## {setting.title} on {setting.data}, {100 * macs:g} % of MACs"
    lines = [heading, "", f"Unpruned: {summarise(whole)}.", ""]
    lines += ["| method | as pruned | fine-tuned | MACs kept | params kept | s | proof | extra epochs | note |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return [*lines, *(_line(name, group) for name, group in sorted(groups.items(), key=_rank)), ""]


def _rank(item: tuple[str, list[Record]]) -> float:
    done = [row["after"]["test"] for row in item[1] if "after" in row]
    return -summarise(done).mean if done else 0.0


def _line(name: str, rows: list[Record]) -> str:
    done = [row for row in rows if "after" in row]
    notes = {row.get("refused") or row.get("failed") or "" for row in rows}
    notes |= {f"{row['ranking']} ranking" for row in done if "ranking" in row}
    notes |= {"finds its widths itself" for row in done if row.get("own")}
    notes |= {"**above the budget**" for row in done if not holds(row)}
    if len(done) < len(rows):
        notes.add(f"{len(done)} of {len(rows)} seeds")
    cells = ["–"] * 6
    if done:
        cells = [
            *(str(summarise([row[when]["test"] for row in done])) for when in ("before", "after")),
            *(f"{100 * summarise([row[key] for row in done]).mean:.1f} %" for key in ("macs_kept", "params_kept")),
            _seconds(done),
            f"{max(row['proof'] for row in done):.0e}" if "proof" in done[0] else "–",
        ]
    note = "; ".join(sorted(filter(None, notes))).replace("|", "/")
    return f"| {name} | " + " | ".join(cells) + f" | {rows[0]['extra_epochs'] or ''} | {note} |"


def _seconds(rows: list[Record]) -> str:
    taken = [row["prune_seconds"] for row in rows if "prune_seconds" in row]
    return f"{summarise(taken).mean:.1f}" if taken else "–"


def _random_table(found: dict[str, Any], when: str) -> list[str]:
    title = {"before": "Right after pruning", "after": "After fine-tuning"}[when]
    lines = [f"## {title}, against random", ""]
    lines += [f"Points above random pruning {when} fine-tuning, mean over networks and budgets; interval over seeds."]
    lines += ["", "| method | points | 95 % interval | |", "|---|---:|---|---|"]
    for name, gain in sorted(against_random(found["pruned"], when).items(), key=lambda item: -item[1].mean):
        ends = "" if gain.low is None or gain.high is None else f"{gain.low:+.1f} to {gain.high:+.1f}"
        word = ("loses" if gain.mean <= 0 else "ahead") + ("" if gain.significant else ", not resolved")
        lines.append(f"| {name} | {gain.mean:+.1f} | {ends} | {word} |")
    return lines


def _scratch_table(found: dict[str, Any], settings: tuple[Setting, ...]) -> list[str]:
    lines = ["## From scratch", "", "One training for each distinct shape; equal widths share it.", ""]
    lines += ["| network | method | MACs kept | Scratch-E | Scratch-B | trainings |", "|---|---|---:|---:|---:|---:|"]
    for setting in settings:
        for macs in BUDGETS:
            for name in SCRATCH:
                rows = [
                    row
                    for row in found["scratch"]
                    if (row["network"], row["method"], row["macs"]) == (setting.title, name, macs)
                ]
                if rows:
                    lines.append(_scratch_line(setting.title, name, macs, rows))
    return lines


def _scratch_line(title: str, name: str, macs: float, rows: list[Record]) -> str:
    told, most = [], 0
    for arm in ("scratch_e", "scratch_b"):
        distinct = {row["training"]: row[arm]["accuracy"]["test"] for row in rows if arm in row}
        told.append(str(summarise(list(distinct.values()))) if distinct else "–")
        most = max(most, len(distinct))
    return f"| {title} | {name} | {100 * macs:g} % | {' | '.join(told)} | {most} |"
