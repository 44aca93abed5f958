"""Sparse structure selection on real images: do whole blocks and whole groups go, and does the network stay the same?

    python benchmarks/sparse_structure.py FOLDER [--out runs/sparse_structure] [--train 5000] [--epochs 6]

FOLDER holds ``cifar10.npz`` as `fetch.py` writes it. A ResNet-20 trains with a scale on every residual block, a
narrow ResNeXt-29 with one on every group of its grouped convolutions; both also without, for comparison. What came to
exactly 0 is cut without fine-tuning, and cut and mask are compared. One seed, one thread. Resumable: run it again
after an interruption. Writes ``sparse_structure.md`` and ``sparse_structure.json`` beside this script after every
training.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import topiarist
from topiarist import Recipe
from topiarist.graph import removed_blocks
from topiarist.methods import make
from topiarist.train import Speed

HERE = Path(__file__).parent
RESNET, RESNEXT = "zoo:resnet20", "zoo:resnext29?width=0.125&groups=8&group_width=16"
TITLES = {RESNET: "ResNet-20", RESNEXT: "ResNeXt-29, 8x2d"}


class Case(NamedTuple):
    """A network, the structures that get scales, and gamma; without structures it trains as it is."""

    network: str
    structure: str | None
    gamma: float


CASES = (
    Case(RESNET, "block", 0.05),
    Case(RESNEXT, "group", 0.05),
    Case(RESNET, None, 0.0),
    Case(RESNEXT, None, 0.0),
)


def run(case: Case, data: topiarist.Data, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train, cut what is 0, and measure; what is done already is read from the folder."""
    name = f"{TITLES[case.network].split(',')[0]}-{case.structure}-{case.gamma}"
    stored = folder / f"{name}.json"
    if stored.exists():
        return dict(json.loads(stored.read_text()))
    begin = time.process_time()
    torch.manual_seed(0)
    model = topiarist.make_model(case.network, in_channels=3, classes=data.classes, input_size=32)()
    x = data.example()
    method = None if case.structure is None else make("sss", gamma=case.gamma, structure=case.structure)
    graph = topiarist.trace(model, x)
    units = graph if method is None else method.units(graph)
    checkpoint = folder / f"{name}.ckpt"

    def told(epoch: int, epochs: int, row: Any) -> None:
        print(f"{name}: epoch {epoch}/{epochs}, loss {row.loss:.3f}, {time.process_time() - begin:.0f} s", flush=True)

    rarely = Speed(evaluate_every=0)
    topiarist.fit(model, data, recipe, method=method, graph=units, checkpoint=checkpoint, speed=rarely, progress=told)
    row: dict[str, Any] = {**case._asdict(), "before": topiarist.evaluate(model, data)}
    if method is not None:
        done = topiarist.prune(model, x, method)
        scaled = method.score(done.graph, topiarist.collect(model, done.graph))
        row |= {
            "after": topiarist.evaluate(done.model, data),
            "kept": {name: [int(done.keep[name].sum()), done.graph[name].units] for name in scaled},
            "removed": [block.name for block in removed_blocks(done.graph.groups, done.keep)],
            "scales": {name: values.tolist() for name, values in scaled.items()},
            "macs": [done.before.macs, done.after.macs],
            "params": [done.before.params, done.after.params],
            "difference": done.proof.max_rel_diff,
            "proved": done.proof.ok,
        }
    row["seconds"] = time.process_time() - begin
    stored.write_text(json.dumps(row, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    return row


def lines(network: str, rows: list[dict[str, Any]]) -> list[str]:
    """The table of one network."""
    plain = next((row for row in rows if row["structure"] is None), None)
    told = [f"## {TITLES[network]}", ""]
    if plain is not None:
        told += [f"Trained without scales: {plain['before']:.2f} % of the test images.", ""]
    told.append("| gamma | structures kept | MACs | parameters | accuracy before | after the cut | cut − mask |")
    told.append("|---|---|---|---|---|---|---|")
    for row in (row for row in rows if row["structure"] is not None):
        kept, of = (sum(counts) for counts in zip(*row["kept"].values(), strict=True))
        cost = [f"{old:,} → {new:,} ({new / old:.0%})" for old, new in (row["macs"], row["params"])]
        proof = f"{row['difference']:.1e}" + ("" if row["proved"] else " (not proved)")
        told.append(
            f"| {row['gamma']:g} | {kept} of {of} {row['structure']}s | {cost[0]} | {cost[1]} | {row['before']:.2f} % "
            f"| {row['after']:.2f} % | {proof} |"
        )
    for row in rows:
        if row["structure"] == "block":
            told += ["", f"gamma {row['gamma']:g} removed {', '.join(row['removed']) or 'no block'}."]
        elif row["structure"] == "group":
            counts = ", ".join(f"{name.partition(':')[0]} {kept}/{of}" for name, (kept, of) in row["kept"].items())
            told += ["", f"gamma {row['gamma']:g} kept these groups: {counts}."]
    return [*told, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/sparse_structure"))
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = topiarist.load_data(f"npz:{options.folder / 'cifar10'}.npz?train={options.train}")
    recipe = Recipe(epochs=options.epochs, lr=0.1, batch_size=64)
    rows = []
    for case in CASES:
        rows.append(run(case, data, recipe, options.out))
        seconds = sum(row["seconds"] for row in rows)
        head = [
            "# Sparse structure selection: whole blocks and whole groups",
            "",
            f"cifar10, {options.train:,} training images, {options.epochs} epochs at rate 0.1 with two drops, seed 0; "
            "accuracy in per cent of the test set, right before and right after the cut, without fine-tuning; the last "
            "column is the largest relative difference of the outputs of cut and mask, in float64. "
            f"{seconds / 60:.0f} minutes of one thread since the last start of each training "
            f"({platform.machine()}), topiarist {topiarist.__version__}, "
            f"torch {torch.__version__}. Rerun: `python benchmarks/sparse_structure.py FOLDER`.",
            "",
        ]
        body = [
            line
            for network in TITLES
            if (mine := [row for row in rows if row["network"] == network])
            for line in lines(network, mine)
        ]
        (HERE / "sparse_structure.md").write_text("\n".join(head + body))
        (HERE / "sparse_structure.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
