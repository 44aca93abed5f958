"""The paper's own comparison on a GPU: are inherited weights worth more than random ones in the same shape?

    python benchmarks/paper_gpu.py FOLDER [--seeds 5] [--workers 4] [--networks resnet56 vgg16 vgg19]
    python benchmarks/paper_gpu.py FOLDER --mini     # an epoch on 256 images: only whether all of it runs
    python benchmarks/paper_gpu.py --report-only     # the tables anew from what the run's folder holds

FOLDER holds ``cifar10.npz`` as `fetch.py` writes it. ResNet-56-A, ResNet-56-B and VGG-16-A of Table 1 and VGG-19 with
70 % of its channels cut by network slimming of Table 4 in Liu et al., "Rethinking the Value of Network Pruning", ICLR
2019, by its recipes: 160 epochs at rate 0.1, divided by 10 after one half and three quarters, batches of 64;
fine-tuning for 40 epochs at 0.001; Scratch-E for 160 epochs; Scratch-B without a cap for as much computation as the
large network. Slimming trains with lam 1e-4.

What is compared with the paper are the differences between arms, for these do not depend on how the images are stored.
Training takes a GPU where there is one; images go there as bytes and are cropped, flipped and normalised on it. These
networks do not fill a large GPU, so let several cells (``--workers``) share it. Resumable at any moment, in the middle
of a training too. Writes ``paper_gpu.md`` and ``paper_gpu.json`` beside this script (with --mini: into the run's
folder, for its numbers mean nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import topiarist
from topiarist.report import rewrite as report
from topiarist.studies import Study, paired, run, summarise
from topiarist.studies.cells import prepare

HERE = Path(__file__).parent
ARMS = ("finetune", "scratch_e", "scratch_b")
WORDS = {"unpruned": "unpruned", "finetune": "fine-tuned", "scratch_e": "Scratch-E", "scratch_b": "Scratch-B"}
PAIRS = (("finetune", "unpruned"), ("scratch_e", "unpruned"), ("scratch_b", "unpruned"), ("finetune", "scratch_e"))
PAIRS += (("finetune", "scratch_b"),)


@dataclass(frozen=True)
class Published:
    """Mean accuracy of each arm on CIFAR-10 in the paper, per cent, five runs each."""

    unpruned: float
    finetune: float
    scratch_e: float
    scratch_b: float

    def difference(self, a: str, b: str) -> float:
        return float(getattr(self, a) - getattr(self, b))


PRESETS = {
    "resnet56": ("resnet56-A", "resnet56-B"),
    "vgg16": ("vgg16-A",),
}
"""Network → presets of the method l1."""

PUBLISHED = {
    "resnet56-A": Published(93.14, 92.97, 92.96, 93.09),
    "resnet56-B": Published(93.14, 92.67, 92.54, 93.05),
    "vgg16-A": Published(93.63, 93.41, 93.62, 93.78),
    "vgg19-70%": Published(93.53, 93.60, 93.30, 93.81),
}


def study(network: str, data: str, seeds: int, mini: bool) -> Study:
    """One network with all its prunings; the recipes are the paper's but for a miniature."""
    if network in PRESETS:
        prunings: list[Mapping[str, Any]] = [{"method": {"name": "l1", "preset": name}} for name in PRESETS[network]]
    else:
        prunings = [{"method": {"name": "slimming", "lam": 1.0e-4}, "budget": {"ratio": 0.3}}]
    settings: dict[str, Any] = {
        "title": f"{network} on CIFAR-10",
        "network": f"zoo:{network}",
        "data": data,
        "seeds": seeds,
        "recipe": {"epochs": 1, "lr": 0.01} if mini else {},  # empty: the paper's
        "arms": list(ARMS),
        "prunings": prunings,
    }
    if mini:
        settings["finetune"] = {"epochs": 1, "lr": 0.001, "schedule": "constant"}
    return Study.of(settings)


def miniature(source: Path, out: Path) -> Path:
    """256 training and 128 test images of the data set."""
    path = out / "cifar10-mini.npz"
    if not path.exists():
        with np.load(source, allow_pickle=False) as stored:
            sizes = {"train_x": 256, "train_y": 256, "test_x": 128, "test_y": 128}
            np.savez(path, **{name: stored[name][:size] for name, size in sizes.items()})
    return path


def name_of(row: Mapping[str, Any]) -> str:
    """The pruning of a row as `PUBLISHED` calls it."""
    network = row["network"].removeprefix("zoo:")
    found = next((name for name in PRESETS.get(network, ()) if name in row["method"]), None)
    return found or (f"{network}-A" if network == "vgg16" else f"{network}-70%")


def tables(results: Mapping[str, Any]) -> list[str]:
    """The arms of one network beside the paper's, and their differences."""
    by_pruning: dict[str, dict[str, dict[int, float]]] = {}
    costs: dict[str, Mapping[str, Any]] = {}
    whole: dict[int, float] = {}
    for row in results["rows"]:
        accuracy = {int(seed): value for seed, value in row["accuracy"]["seeds"].items()}
        if row["method"] == "none":
            whole = accuracy
        elif row["arm"] in ARMS:
            by_pruning.setdefault(name_of(row), {})[row["arm"]] = accuracy
            costs.setdefault(name_of(row), row)
    lines: list[str] = []
    for name, arms in by_pruning.items():
        lines += [f"## {name}", "", _costs(costs[name]), "", *_arms({"unpruned": whole, **arms}, PUBLISHED[name]), ""]
        lines += [*_differences({"unpruned": whole, **arms}, PUBLISHED[name]), ""]
    return lines


def _costs(row: Mapping[str, Any]) -> str:
    if row["macs_ratio"] is None:
        return "Not pruned yet."
    return f"Keeps {100 * row['macs_ratio']:.1f} % of the MACs and {100 * row['params_ratio']:.1f} % of the parameters."


def _arms(arms: Mapping[str, Mapping[int, float]], paper: Published) -> list[str]:
    lines = ["| arm | accuracy | paper | seeds |", "|---|---:|---:|---:|"]
    for arm, values in arms.items():
        mean = str(summarise(list(values.values()))) if values else "–"
        lines.append(f"| {WORDS[arm]} | {mean} | {getattr(paper, arm):.2f} | {len(values)} |")
    return lines


def _differences(arms: Mapping[str, Mapping[int, float]], paper: Published) -> list[str]:
    lines = ["| difference | points | 95 % interval | paper | |", "|---|---:|---|---:|---|"]
    for a, b in PAIRS:
        if not arms.get(a, {}).keys() & arms.get(b, {}).keys():
            continue
        found, published = paired(arms[a], arms[b]), paper.difference(a, b)
        ends, told = "", "one seed gives no interval"
        if found.low is not None and found.high is not None:
            ends = f"{found.low:+.2f} to {found.high:+.2f}"
            told = "holds the paper's" if found.low <= published <= found.high else "leaves out the paper's"
            told += "" if found.significant else "; no significant difference"
        lines.append(f"| {WORDS[a]} − {WORDS[b]} | {found.mean:+.2f} | {ends} | {published:+.2f} | {told} |")
    return lines


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {platform.machine()}"
    return f"{device}, {os.cpu_count()} cores, topiarist {topiarist.__version__}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="holds cifar10.npz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--networks", nargs="+", choices=[*PRESETS, "vgg19"], default=[*PRESETS, "vgg19"])
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    if options.folder is None and not options.report_only:
        parser.error("name the folder that holds cifar10.npz")
    out = options.out or Path("runs/paper-gpu-mini" if options.mini else "runs/paper-gpu")
    prepare(out)
    sections, everything = [], {}
    for network in options.networks:
        if options.report_only:
            results = report(out / network)
        else:
            source = options.folder / "cifar10.npz"
            path = miniature(source, out) if options.mini else source
            asked = study(network, f"npz:{path}", options.seeds or (1 if options.mini else 5), options.mini)
            results = run(asked, out / network, workers=options.workers)
        sections += tables(results)
        everything[network] = results
        head = [
            "# The paper's arms on CIFAR-10",
            "",
            "Test accuracy after the last epoch in per cent, mean ± standard deviation; differences paired by seed. "
            "The paper's are means over five runs of the best epoch: compare the differences, not the levels. "
            f"{machine()}. Rerun: `python benchmarks/paper_gpu.py FOLDER`.",
            "",
        ]
        stem = (out if options.mini else HERE) / "paper_gpu"
        stem.with_suffix(".md").write_text("\n".join(head + sections))
        stem.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
