"""Why fewer MACs need not be less time: widths step by step, and one network pruned in four ways.

python benchmarks/not_faster.py    # writes benchmarks/not_faster.json and .md; minutes of one core
"""

from __future__ import annotations

import argparse
import os
import textwrap
from pathlib import Path

import torch
from torch import nn

import topiarist
from topiarist import Bench, Budget, bench
from topiarist.files import write_json
from topiarist.measure import Median, Rounds

HERE = Path(__file__).parent
TARGETS = ("torch", "onnxruntime")
WIDTHS = (64, 60, 57, 56, 55, 52, 50, 49, 48, 47, 40, 33, 32, 31)
MAPS = 16
NETWORK, INPUT = "zoo:resnet20", (1, 3, 32, 32)


def layers(width: int) -> nn.Module:
    """Two convolutions with so many channels between them."""
    return nn.Sequential(nn.Conv2d(64, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 64, 3, padding=1))


def of_widths(rounds: Rounds) -> Bench:
    networks = {str(width): layers(width) for width in WIDTHS}
    return bench(networks, torch.randn(1, 64, MAPS, MAPS), TARGETS, rounds=rounds, memory=False)


def of_prunings(rounds: Rounds) -> Bench:
    model, x = topiarist.load_model(NETWORK), torch.randn(INPUT)
    ways = {
        "l1, 50 % of MACs": ("l1", Budget(macs=0.5)),
        "the same, multiples of 8": ("l1", Budget(macs=0.5, multiple=8)),
        "magnitude, 10 % of weights": ("magnitude", Budget(ratio=0.1)),
    }
    done = {name: topiarist.prune(model, x, method, budget) for name, (method, budget) in ways.items()}
    networks = {"unpruned": model, **{name: each.model for name, each in done.items()}}
    macs = {name: each.after.macs for name, each in done.items()}
    return bench(networks, x, TARGETS, (1,), (1, 16), rounds=rounds, macs=macs)


def table(found: Bench, head: str) -> list[str]:
    settings = found.settings
    heads = [head, "MACs", *(f"{each.target}, batch {each.batch}: ms" for each in settings)]
    heads = [cell for name in heads for cell in ([name, "speed-up"] if name.endswith("ms") else [name])]
    lines = [heads, ["---"] * len(heads)]
    for network in found.networks:
        cells = [network.name, f"{(network.macs or 0) / (found.networks[0].macs or 1):.0%}"]
        for setting in settings:
            (reading,) = [r for r in found.readings if (r.network, r.setting) == (network.name, setting)]
            cells += [spread(reading.latency), interval(reading.speedup)]
        lines.append(cells)
    return [f"| {' | '.join(line)} |" for line in lines]


def spread(latency: Median | None) -> str:
    return "–" if latency is None else f"{latency.value:.3g} ± {latency.spread or 0:.2g}"


def interval(ratio: Median | None) -> str:
    return "1" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    rounds = Rounds(options.rounds, options.seconds)
    torch.manual_seed(0)
    widths, prunings = of_widths(rounds), of_prunings(rounds)
    write_json(HERE / "not_faster.json", {"widths": widths.to_json(), "prunings": prunings.to_json()})
    versions = ", ".join(f"{name} {version}" for name, version in widths.environment.items())
    story = (
        "Networks ran in turns, one thread, each once in a round; medians with half of their 95 % intervals, and "
        "speed-ups as medians of the ratios of the rounds, with their intervals. By `benchmarks/not_faster.py`, with "
        "`topiarist.bench`."
    )
    parts = [
        "# Fewer MACs, less time?",
        textwrap.fill(story, 120),
        "## Widths",
        f"Two 3×3 convolutions, 64 → width → 64 channels, on maps of {MAPS}×{MAPS}, batch 1.",
        "\n".join(table(widths, "width")),
        "## Prunings",
        f"{NETWORK.removeprefix('zoo:')} on images of 32×32, with untrained weights.",
        "\n".join(table(prunings, "network")),
        textwrap.fill(f"{versions}; {os.cpu_count()} processors, which did other work besides.", 120),
    ]
    (HERE / "not_faster.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
