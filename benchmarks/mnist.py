"""Two networks on two data sets: do L1 and slimming beat random pruning, and what are the inherited weights worth?

    python benchmarks/mnist.py FOLDER [--out runs/mnist] [--train 10000] [--workers 2] [--many-seeds]

FOLDER holds ``mnist.npz`` and ``fashion_mnist.npz`` as `fetch.py` writes them. LeNet-5 with batch norm (slimming
needs its scales) and a quarter-width VGG-11 train for 3 epochs on a subset, at 3 seeds; random, L1 and slimming keep
70 % and 50 % of the MACs; every arm follows. Resumable: run it again after an interruption. Writes ``mnist.md`` and
``mnist.json`` beside this script.

What a criterion is worth before fine-tuning varies much from seed to seed. ``--many-seeds`` asks only that, of LeNet-5,
which is quick, with ten seeds; it writes ``mnist_seeds.md`` and ``mnist_seeds.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from arms import anywhere

import topiarist
from topiarist.studies import Study, paired, run

HERE = Path(__file__).parent
LENET, VGG = ("LeNet-5 (batch norm)", "zoo:lenet5?norm=true"), ("VGG-11, quarter width", "zoo:vgg11?width=0.25")
PAIRS = ((LENET, "mnist"), (VGG, "fashion_mnist"), (LENET, "fashion_mnist"), (VGG, "mnist"))
SHARES = (0.7, 0.5)
MANY = 10
ARMS = ("pruned", "finetune", "scratch_e", "scratch_b", "uniform")


def study(network: str, data: str, title: str, macs: float, arms: list[str], seeds: int = 3) -> Study:
    return Study.of({
        "title": title,
        "network": network,
        "data": data,
        "seeds": seeds,
        "recipe": {"epochs": 3, "lr": 0.05, "batch_size": 64},
        "finetune": {"epochs": 1, "lr": 0.005, "batch_size": 64, "schedule": "constant"},
        "cap": 2,
        "arms": arms,
        "prunings": [
            {"method": ["random", "l1"], "budget": {"macs": macs}},
            {"method": {"name": "slimming", "lam": 1.0e-3}, "budget": {"macs": macs}},
        ],
    })  # fmt: skip


def cell(row: dict) -> str:
    accuracy = row["accuracy"]
    return f"{accuracy['mean']:.2f} ± {accuracy['std']:.2f}"


def table(title: str, parts: list[dict]) -> list[str]:
    lines = [f"## {title}", "", "| method | MACs kept | as pruned | fine-tuned | Scratch-E | Scratch-B | uniform |"]
    lines.append("|---|---|---|---|---|---|---|")
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in (row for results in parts for row in results["rows"] if row["arm"] != "unpruned"):
        found.setdefault((row["method"], row["goal"]), {})[row["arm"]] = row
    for (method, goal), arms in found.items():
        shown = [cell(arms[arm]) if arm in arms else "" for arm in ARMS]
        lines.append(f"| {method} | {goal} | " + " | ".join(shown) + " |")
    whole = next(row for row in parts[-1]["rows"] if row["arm"] == "unpruned")
    lines += ["", f"Unpruned: {cell(whole)} % of the test images.", ""]
    sentences = [against_random(found, method, goal) for method, goal in found if method != "random"]
    return [*lines, *(f"- {sentence}" for sentence in [*sentences, *parts[-1]["conclusion"]]), ""]


def against_random(found: dict[tuple[str, str], dict[str, dict]], method: str, goal: str) -> str:
    """What the criterion is worth before fine-tuning, seed by seed."""
    ours, theirs = (found[name, goal]["pruned"]["accuracy"]["seeds"] for name in (method, "random"))
    gain = paired(ours, theirs)
    told = "" if gain.significant else ", no significant difference"
    return (
        f"As pruned at {goal}, {method} is {gain.mean:+.1f} points from random "
        f"(95 % interval {gain.low:+.1f} to {gain.high:+.1f}{told})."
    )


def many_seeds(title: str, parts: list[dict]) -> list[str]:
    """Only what the networks are worth right after pruning."""
    found = {(r["method"], r["goal"]): {"pruned": r} for part in parts for r in part["rows"] if r["arm"] == "pruned"}
    lines = [f"## {title}", "", "| method | MACs kept | as pruned |", "|---|---|---|"]
    lines += [f"| {method} | {goal} | {cell(arms['pruned'])} |" for (method, goal), arms in found.items()]
    sentences = [against_random(found, method, goal) for method, goal in found if method != "random"]
    return [*lines, "", *(f"- {sentence}" for sentence in sentences), ""]


def head(options: argparse.Namespace, seeds: int, minutes: float) -> list[str]:
    command = f"python benchmarks/mnist.py FOLDER{' --many-seeds' if options.many_seeds else ''}"
    return [
        "# Random, L1 and slimming on small images",
        "",
        f"{options.train:,} training images, 3 epochs (fine-tuning 1), {seeds} seeds; accuracy in per cent of the test "
        f"set, mean ± standard deviation. {minutes:.0f} minutes since the last start, with {options.workers} worker(s) "
        f"of one thread on {os.cpu_count()} cores ({platform.machine()}), topiarist {topiarist.__version__}, torch "
        f"{torch.__version__}. Rerun: `{command}`.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--many-seeds", action="store_true", help="only LeNet-5 as pruned, ten seeds")
    options = parser.parse_args()
    begin, name_out = time.time(), "mnist_seeds" if options.many_seeds else "mnist"
    sections, everything = [], {}
    for (title, network), name in PAIRS:
        if options.many_seeds and network != LENET[1]:
            continue
        data, heading = f"npz:{options.folder / name}.npz?train={options.train}", f"{title} on {name}"
        out = options.out / f"{name}-{network[4:9]}"
        seeds, later = (MANY, []) if options.many_seeds else (3, ["finetune", "scratch_e", "scratch_b", "uniform"])
        parts = [
            run(study(network, data, heading, macs, arms, seeds), out, workers=options.workers)
            for macs, arms in zip(SHARES, ([], later), strict=True)
        ]
        sections += (many_seeds if options.many_seeds else table)(heading, parts)
        everything[heading] = [anywhere(row, name) for results in parts for row in results["rows"]]
        top = head(options, seeds, (time.time() - begin) / 60)
        (HERE / f"{name_out}.md").write_text("\n".join(top + sections))
        (HERE / f"{name_out}.json").write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
