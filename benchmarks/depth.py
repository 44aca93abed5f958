"""Time against depth: CPU time of trace, cut and proof of plain networks of 100 to 800 layers, beside Torch-Pruning's.

    python benchmarks/depth.py [--layers 100 200 400 800] [--pairs 3] [--out benchmarks/depth]

Two networks of residual blocks, each of two layers: convolutions with batch norms, 16 channels wide, and an MLP of
tokens with layer norms, 16 and 64 wide. They are small, so that what is measured is the work for each layer, not the
network's own. Both packages halve every layer by the L1 norm, in one process and in turn, as in
`versus_torch_pruning.py`. Times are CPU seconds of one thread, medians over the pairs. Linear in depth means: twice the
layers, twice the time.

Writes one JSON line a network, after a line that names the machine, and a Markdown table. Needs `torch-pruning` and the
extra `vision`.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from versus_torch_pruning import PACKAGES, fresh, machine, peer_settings, prune_ours, prune_peer, warm_up

CLASSES = 10
LINEAR = 1.2
"""Time a layer at the greatest depth, against that at the least, which still counts as linear."""


class ConvBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(out)))


class MlpBlock(nn.Module):
    """Two linear layers and a shortcut."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Residual(nn.Module):
    """A stem, blocks and a classifier over the mean of all places."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], places: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = stem, nn.Sequential(*blocks), nn.Linear(16, CLASSES)
        self.places = tuple(places)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.blocks(self.stem(x)).mean(self.places))
        return out


def residual(layers: int) -> tuple[nn.Module, Tensor]:
    """Convolutions with batch norms on 8x8 pixels."""
    blocks = [ConvBlock() for _ in range(layers // 2)]
    return Residual(nn.Conv2d(3, 16, 3, padding=1), blocks, (-2, -1)), torch.randn(1, 3, 8, 8)


def mlp(layers: int) -> tuple[nn.Module, Tensor]:
    """Linear layers with layer norms on eight tokens."""
    return Residual(nn.Linear(12, 16), [MlpBlock() for _ in range(layers // 2)], (1,)), torch.randn(1, 8, 12)


NETWORKS = {"residual": residual, "mlp": mlp}


def measured(name: str, layers: int, pairs: int) -> dict[str, Any]:
    """One row: medians of the seconds of each step, and of the peer."""
    torch.manual_seed(0)
    model, example = NETWORKS[name](layers)
    model.eval()
    runs: dict[str, list[float]] = {"trace": [], "cut": [], "proof": [], "peer": []}
    for _ in range(pairs):
        _, steps, prove = prune_ours(fresh(model), example)
        gc.collect()
        begin = time.process_time()
        proof = prove()
        runs["proof"].append(time.process_time() - begin)
        assert proof.ok, proof.reason
        runs["trace"].append(steps["trace"])
        runs["cut"].append(sum(steps.values()) - steps["trace"])
        copied = fresh(model)
        runs["peer"].append(prune_peer(copied, example, peer_settings(copied, [copied(example)])))
    seconds = {key: round(median(values), 4) for key, values in runs.items()}
    every = {key: [round(value, 4) for value in values] for key, values in runs.items()}
    return {"network": name, "layers": layers, **seconds, "runs": every}


def markdown(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    versions = ", ".join(f"{name} {head[name]}" for name in (*PACKAGES, "python"))
    lines = [
        "# Time against depth",
        "",
        "CPU seconds of one thread on plain networks of residual blocks, 16 channels wide; medians of runs of both",
        "packages in turn in one process. Cut is score, allocation and cut. The peer, Torch-Pruning, has no proof.",
        "Made by `depth.py`.",
        "",
        f"Machine: {head['processor']}, {head['cores']} cores. Versions: {versions}.",
        "",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        first, *_, last = mine = [row for row in rows if row["network"] == name]
        if len(mine) > 1:
            growth = {key: last[key] / last["layers"] / (first[key] / first["layers"]) for key in first["runs"]}
            ours = max(growth[key] for key in ("trace", "cut", "proof"))
            each = ", ".join(f"{key} {value:.2f}" for key, value in growth.items())
            lines.append(
                f"- {name}: time a layer at {last['layers']} layers over that at {first['layers']}: {each}; ours "
                f"at most {LINEAR} is {'met' if ours <= LINEAR else 'NOT met'}."
            )
    lines += [
        "",
        "| network | layers | trace s | cut s | proof s | peer s | trace and cut over peer | proof over trace |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        times = " | ".join(f"{row[key]:.2f}" for key in ("trace", "cut", "proof", "peer"))
        ratios = f"{(row['trace'] + row['cut']) / row['peer']:.2f} | {row['proof'] / row['trace']:.2f}"
        lines.append(f"| {row['network']} | {row['layers']} | {times} | {ratios} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""), help="without its suffix")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    warm_up()
    head, rows = machine(), []
    for name in NETWORKS:
        for layers in options.layers:
            rows.append(measured(name, layers, options.pairs))
            print(*(f"{key} {value}" for key, value in rows[-1].items() if key != "runs"), flush=True)
    lines_file, table_file = (options.out.with_name(options.out.name + end) for end in (".jsonl", ".md"))
    lines_file.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    table_file.write_text(markdown(head, rows))


if __name__ == "__main__":
    main()
