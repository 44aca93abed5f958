"""Two networks on two data sets: do L1 and slimming beat random pruning, and what are the inherited weights worth?

    python benchmarks/mnist.py FOLDER [--out runs/mnist] [--train 10000] [--workers 2]

FOLDER holds ``mnist.npz`` and ``fashion_mnist.npz`` with the arrays ``train_x``, ``train_y``, ``test_x``, ``test_y``
(uint8; `torchvision.datasets` has both sets, and `numpy.savez` writes them). LeNet-5 with batch norm (slimming needs
its scales) and a quarter-width VGG-11 train for 3 epochs on a subset, at 3 seeds; random, L1 and slimming keep 70 %
and 50 % of the MACs; every arm follows. Resumable: run it again after an interruption. Writes ``mnist.md`` and
``mnist.json`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

import topiarist
from topiarist.studies import Study, run

HERE = Path(__file__).parent
NETWORKS = {"LeNet-5 (batch norm)": "zoo:lenet5?norm=true", "VGG-11, quarter width": "zoo:vgg11?width=0.25"}
SETS = ("mnist", "fashion_mnist")
ARMS = ("pruned", "finetune", "scratch_e", "scratch_b", "uniform")


def study(network: str, data: str, title: str) -> Study:
    return Study.of({
        "title": title,
        "network": network,
        "data": data,
        "seeds": 3,
        "recipe": {"epochs": 3, "lr": 0.05, "batch_size": 64},
        "finetune": {"epochs": 1, "lr": 0.005, "batch_size": 64, "schedule": "constant"},
        "cap": 2,
        "prunings": [
            {"method": ["random", "l1"], "budget": [{"macs": 0.7}, {"macs": 0.5}]},
            {"method": "slimming", "budget": [{"macs": 0.7}, {"macs": 0.5}], "fields": {"lam": 1.0e-3}},
        ],
    })  # fmt: skip


def cell(row: dict) -> str:
    accuracy = row["accuracy"]
    return f"{accuracy['mean']:.2f} ± {accuracy['std']:.2f}"


def table(title: str, results: dict) -> list[str]:
    lines = [f"## {title}", "", "| method | MACs kept | as pruned | fine-tuned | Scratch-E | Scratch-B | uniform |"]
    lines.append("|---|---|---|---|---|---|---|")
    rows = results["rows"]
    whole = next(row for row in rows if row["arm"] == "unpruned")
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["arm"] != "unpruned":
            found.setdefault((row["method"], row["goal"]), {})[row["arm"]] = row
    for (method, goal), arms in found.items():
        shown = [
            cell(arms[a]) if a in arms else "" for a in ("pruned", "finetune", "scratch_e", "scratch_b", "uniform")
        ]
        lines.append(f"| {method} | {goal} | " + " | ".join(shown) + " |")
    lines += ["", f"Unpruned: {cell(whole)} % of the test images.", ""]
    return lines + [f"- {sentence}" for sentence in results["conclusion"]] + [""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    begin = time.time()
    lines = ["# Random, L1 and slimming on small images", ""]
    everything = {}
    for title, network in NETWORKS.items():
        for name in SETS:
            data = f"npz:{options.folder / name}.npz?train={options.train}"
            heading = f"{title} on {name}"
            results = run(
                study(network, data, heading), options.out / f"{name}-{network[4:9]}", workers=options.workers
            )
            lines += table(heading, results)
            everything[heading] = results["rows"]
    hours = (time.time() - begin) / 3600
    lines[1:1] = [
        "",
        f"{options.train:,} training images, 3 epochs, seeds 0, 1, 2; accuracy in per cent of the test set, mean ± "
        f"standard deviation. {hours:.2f} hours with {options.workers} workers of one thread on {os.cpu_count()} cores "
        f"({platform.machine()}), topiarist {topiarist.__version__}, torch {torch.__version__}. "
        "Rerun: `python benchmarks/mnist.py FOLDER`.",
    ]
    (HERE / "mnist.md").write_text("\n".join(lines) + "\n")
    (HERE / "mnist.json").write_text(json.dumps(everything, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
