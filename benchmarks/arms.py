"""Is fine-tuning a pruned network worth more than training its shape from scratch? The arms on real images.

    python benchmarks/arms.py FOLDER [--out runs/arms] [--workers 2] [--networks resnet20]
    python benchmarks/arms.py FOLDER --mini

FOLDER holds ``fashion_mnist.npz`` and ``cifar10.npz`` as `fetch.py` writes them. A quarter-width VGG-11 and a
half-width ResNet-20 train on subsets at three seeds; L1-norm, ThiNet, Network Slimming and Sparse Structure Selection
keep half of the MACs, magnitude a fifth of the weights; fine-tuning, Scratch-E, Scratch-B (at most twice the epochs)
and uniform widths follow. Resumable: run it again after an interruption; each study's folder has its own report.
Writes ``arms.md`` and ``arms.json`` beside this script (for ``--mini`` into the run's folder) after each network; one
that is not asked for stays in them as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import topiarist
from topiarist.studies import ARMS, Study, paired, run

HERE = Path(__file__).parent
PAIRS = (
    ("VGG-11, quarter width", "zoo:vgg11?width=0.25", "fashion_mnist", {"structure": "channel"}),
    ("ResNet-20, half width", "zoo:resnet20?width=0.5", "cifar10", {"structure": "block"}),
)
"""Title, network, data, and what SSS removes: a VGG has no blocks."""
SHOWN = ("pruned", "finetune", "scratch_e", "scratch_b", "uniform")
ALIKE = {"l1": "predefined", "thinet": "predefined", "slimming": "automatic", "sss": "automatic", "magnitude": "sparse"}
"""Method → what kind of architecture it gives: chosen by the user, found by the method, or single weights."""


def study(title: str, network: str, data: str, structure: dict[str, str], mini: bool) -> Study:
    train = {"epochs": 1 if mini else 12, "lr": 0.05, "batch_size": 64, "schedule": "step", "milestones": [0.5, 0.75]}
    half = {"budget": {"macs": 0.5}}
    return Study.of({
        "title": title,
        "network": network,
        "data": data,
        "seeds": 2 if mini else 3,
        "recipe": train,
        # A quarter of the epochs at a tenth of the rate, as the paper's 40 of 160 at a low one.
        "finetune": {"epochs": 1 if mini else 3, "lr": 0.005, "batch_size": 64, "schedule": "constant"},
        "cap": 2,
        "speed": {"channels_last": True},  # which most processors compute convolutions with sooner
        "arms": list(SHOWN),
        "prunings": [
            {"method": ["l1", "thinet"], **half},
            {"method": {"name": "slimming", "lam": 1.0e-3}, **half},
            {"method": {"name": "sss", **structure}, **half},
            {"method": "magnitude", "budget": {"ratio": 0.2}},
        ],
    })  # fmt: skip


def table(results: dict[str, Any]) -> list[str]:
    """The arms of each method beside one another, and what each is to fine-tuning, seed by seed."""
    found: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        if row["arm"] != "unpruned":
            found.setdefault(row["method"], {})[row["arm"]] = row
    lines = [
        "| method | architecture | " + " | ".join(ARMS[arm].label for arm in SHOWN) + " |",
        "|---|---|" + "---:|" * len(SHOWN),
    ]
    for method, arms in found.items():
        lines.append(f"| {method} | {ALIKE[method]} | " + " | ".join(told(arms.get(arm)) for arm in SHOWN) + " |")
    whole = [f"{told(row)} ({row['method']})" for row in results["rows"] if row["arm"] == "unpruned"]
    lines += ["", f"Unpruned: {', '.join(whole)}.".replace(" (none)", ""), ""]
    lines += ["| method | from scratch − fine-tuned | points | 95 % interval |", "|---|---|---:|---:|"]
    for method, arms in found.items():
        for arm in ("scratch_e", "scratch_b"):
            gain = paired(arms[arm]["accuracy"]["seeds"], arms["finetune"]["accuracy"]["seeds"])
            lines.append(f"| {method} | {ARMS[arm].label} | {gain.mean:+.2f} | {gain.low:+.2f} to {gain.high:+.2f} |")
    return [*lines, "", *(f"- {sentence}" for sentence in results["conclusion"]), ""]


def told(row: dict[str, Any] | None) -> str:
    """Mean and spread, or nothing."""
    if row is None or row["accuracy"] is None:
        return ""
    return f"{row['accuracy']['mean']:.2f} ± {row['accuracy']['std']:.2f}"


def head(options: argparse.Namespace, images: int) -> list[str]:
    return [
        "# Fine-tuning against training from scratch",
        "",
        f"{images:,} training images, 12 epochs (fine-tuning 3), three seeds; accuracy in per cent of the 10,000 "
        "test images, mean ± standard deviation. Structures keep 50 % of the MACs, `magnitude` 20 % of the "
        "weights. Scratch-E trains the pruned shape for the epochs of the unpruned network, Scratch-B for its "
        "computation, but at most twice the epochs; uniform narrows all layers alike and trains as Scratch-B. "
        "Where a method trains with a penalty or scales, its unpruned network is another one. Liu et al. (ICLR "
        "2019) claim that for predefined architectures training from scratch is at least as good as fine-tuning, "
        "for automatic ones too, and that for single weights it is so on small data sets only. Twelve epochs of so "
        "few images leave the ResNet-20 far from converged: what Scratch-B is ahead there is mostly its twice as many "
        "epochs, so compare Scratch-E.",
        "",
        f"{options.workers} worker(s) of one thread on {os.cpu_count()} cores ({platform.machine()}), topiarist "
        f"{topiarist.__version__}, torch {torch.__version__}, Python {platform.python_version()}. Rerun: "
        "`python benchmarks/arms.py FOLDER`.",
        "",
    ]


def anywhere(row: dict[str, Any], data: str) -> dict[str, Any]:
    """A row without the names of cells and files, which hold paths."""
    return {key: value for key, value in row.items() if key != "cells"} | {"data": data}


def name_of(network: str) -> str:
    """``"zoo:vgg11?width=0.25"`` → ``"vgg11"``."""
    return network.removeprefix("zoo:").partition("?")[0]


def main() -> None:
    names = [name_of(network) for _, network, _, _ in PAIRS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--results", type=Path, default=HERE, help="folder of arms.md and arms.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--mini", action="store_true", help="few images, one epoch: only shows that all of it runs")
    options = parser.parse_args()
    images, results = (200 if options.mini else 5_000), options.out if options.mini else options.results
    file = results / "arms.json"
    everything = json.loads(file.read_text()) if file.exists() else {}
    for title, network, name, structure in PAIRS:
        if name_of(network) not in options.networks:
            continue
        heading = f"{title} on {name}"
        data = f"npz:{options.folder / name}.npz?train={images}"
        found = run(
            study(heading, network, data, structure, options.mini),
            options.out / f"{name}-{name_of(network)}",
            workers=options.workers,
        )
        everything[heading] = {"conclusion": found["conclusion"], "rows": [anywhere(r, name) for r in found["rows"]]}
        file.write_text(json.dumps(everything, indent=1) + "\n")
        sections = head(options, images)
        for each, kept in everything.items():
            sections += [f"## {each}", "", *table(kept)]
        (results / "arms.md").write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
