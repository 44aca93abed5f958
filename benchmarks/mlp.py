"""Network Slimming and group lasso on the MLP 784-500-300-10 and MNIST, beside the numbers that the papers report.

    python benchmarks/mlp.py FOLDER [--out runs/mlp] [--epochs 30] [--seeds 5]

FOLDER holds ``mnist.npz`` with the arrays ``train_x``, ``train_y``, ``test_x``, ``test_y`` (uint8). The network has a
batch norm after each hidden layer. It trains with each method's penalty by the recipe of Liu et al. (2017): 30 epochs,
batches of 256, rate 0.1 divided by 10 after one third and two thirds; is pruned; and trains once more by the same
recipe. Slimming keeps a fifth of each hidden layer, as in the paper (784-100-60-10); group lasso shares 16 % of the
parameters out by itself. The strength of each penalty is chosen once, at seed 0, on 10,000 training images held out
for it, in a third of the epochs; then the weight decay of both trainings is chosen at that strength in the same way.
The test images are only looked at in the end. Removed are weights, without biases.
Resumable: run it again after an interruption. Writes ``mlp.md`` and ``mlp.json`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn

import topiarist
from topiarist import Budget, Recipe
from topiarist.data import Data
from topiarist.methods import Method, make
from topiarist.train import Speed

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A method, what it tries, and what its paper reports.

    Attributes:
        fields: of the method, beside ``lam``.
        strengths: values of ``lam`` to choose from.
        budget: what stays.
        error: per cent of the test images, published.
        removed: per cent of the weights, published.
    """

    method: str
    fields: Mapping[str, str]
    strengths: tuple[float, ...]
    budget: Budget
    error: float
    removed: float


ENTRIES = (
    Entry("slimming", {}, (1e-5, 1e-4, 1e-3, 3e-3, 1e-2), Budget(ratios={"*": 0.2}), 1.49, 84.4),
    Entry("group_lasso", {"kind": "channel"}, (1e-5, 1e-4, 1e-3, 3e-3), Budget(params=0.16), 1.53, 83.5),
)


DECAYS = (1e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def recipe(epochs: int, decay: float) -> Recipe:
    return Recipe(epochs, nesterov=True, batch_size=256, milestones=(1 / 3, 2 / 3), augment=False, weight_decay=decay)


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def measured(name: str, method: Method, budget: Budget, data: Data, training: Recipe, seed: int, out: Path) -> dict:
    """One network, trained, pruned and trained again; read from its file where it has been done."""
    path = out / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    torch.manual_seed(seed)
    model, example = topiarist.load_model("zoo:mlp"), data.example()
    options = {"recipe": training, "seed": seed, "speed": Speed(evaluate_every=0)}
    graph = topiarist.trace(model, example)
    topiarist.fit(model, data, method=method, graph=graph, checkpoint=out / f"{name}.whole", **options)
    whole = 100 - topiarist.evaluate(model, data)
    done = topiarist.prune(model, example, method, budget, data, graph=graph)
    pruned = 100 - topiarist.evaluate(done.model, data)
    topiarist.fit(done.model, data, checkpoint=out / f"{name}.pruned", **options)
    result = {
        "whole": whole,
        "pruned": pruned,
        "finetuned": 100 - topiarist.evaluate(done.model, data),
        "removed": 100 * (1 - weights(done.model) / weights(model)),
        "widths": [kept for kept, _ in done.architecture.widths.values()],
        "proof": done.proof.max_rel_diff,
        "epochs": training.epochs,
    }
    path.write_text(json.dumps(result) + "\n")
    for part in ("whole", "pruned"):
        (out / f"{name}.{part}").unlink()
    return result


def row(entry: Entry, data: Data, options: argparse.Namespace) -> dict:
    """The choice of a strength and of a weight decay, and then every seed with them."""
    held, short = data.split(1 / 6), max(1, options.epochs // 3)

    def error(lam: float, decay: float) -> float:
        name = f"{entry.method}-{lam:g}-{decay:g}-choice"
        method = make(entry.method, lam=lam, **entry.fields)
        found = measured(name, method, entry.budget, held, recipe(short, decay), 0, options.out)["finetuned"]
        print(f"{name}: {found:.2f} % of the held-out images wrong", flush=True)
        return found

    strengths = {lam: error(lam, DECAYS[0]) for lam in entry.strengths}
    lam = min(strengths, key=lambda each: strengths[each])
    decays = {decay: error(lam, decay) for decay in DECAYS}
    decay = min(decays, key=lambda each: decays[each])
    method = make(entry.method, lam=lam, **entry.fields)
    seeds = []
    for seed in range(options.seeds):
        name = f"{entry.method}-{lam:g}-{decay:g}-{options.epochs}-s{seed}"
        seeds.append(measured(name, method, entry.budget, data, recipe(options.epochs, decay), seed, options.out))
        print(f"{name}: {seeds[-1]}", flush=True)
    return {
        "method": entry.method,
        "lam": lam,
        "weight_decay": decay,
        "tried": {"lam": _named(strengths), "weight_decay": _named(decays)},
        "seeds": seeds,
    }


def _named(errors: Mapping[float, float]) -> dict[str, float]:
    return {f"{value:g}": error for value, error in errors.items()}


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(rows: list[dict], options: argparse.Namespace) -> str:
    lines = [
        "# Network Slimming and group lasso on the MLP 784-500-300-10, MNIST",
        "",
        f"{options.epochs} epochs with the penalty, as many after pruning; seeds 0 to {options.seeds - 1}; errors in "
        "per cent of the 10,000 test images after the last epoch, mean ± standard deviation. One thread on "
        f"{os.cpu_count()} cores ({platform.machine()}), topiarist {topiarist.__version__}, torch {torch.__version__}. "
        "Rerun: `python benchmarks/mlp.py FOLDER`.",
        "",
        "| method | lam | weight decay | weights removed | hidden widths, seed 0 | error whole | as pruned "
        "| fine-tuned | published |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each, entry in zip(rows, ENTRIES, strict=False):
        found = {key: [seed[key] for seed in each["seeds"]] for key in ("whole", "pruned", "finetuned", "removed")}
        cells = [
            each["method"],
            f"{each['lam']:g}",
            f"{each['weight_decay']:g}",
            f"{min(found['removed']):.1f} % or more",
            "-".join(map(str, each["seeds"][0]["widths"])),
            *(spread(found[key]) for key in ("whole", "pruned", "finetuned")),
            f"{entry.error} with {entry.removed} % removed",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += weak(rows)
    lines += ["", "Values tried, and per cent of the held-out images wrong after a third of the epochs:", ""]
    for each in rows:
        for what, errors in each["tried"].items():
            lines.append(f"- {each['method']}, {what}: " + ", ".join(f"{k}: {v:.2f}" for k, v in errors.items()))
    return "\n".join([*lines, ""])


WEAK = 50.0
"""Per cent of the images wrong as pruned from which on a penalty has made nothing small."""


NEXT_TO_NOTHING = (
    "The penalty of {} that the held-out images chose is next to nothing: what is pruned was not small, and right "
    "after pruning most images are wrong. Its row shows what fine-tuning does, not what the penalty does."
)


def weak(rows: list[dict]) -> list[str]:
    """Says of which methods the penalty was too weak to make the removed units small."""
    names = [row["method"] for row in rows if mean(seed["pruned"] for seed in row["seeds"]) > WEAK]
    return [line for name in names for line in ("", NEXT_TO_NOTHING.format(name))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/mlp"))
    parser.add_argument("--results", type=Path, default=HERE)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data, rows = topiarist.load_data(f"npz:{options.folder / 'mnist.npz'}"), []
    for entry in ENTRIES:
        rows.append(row(entry, data, options))
        (options.results / "mlp.md").write_text(table(rows, options), encoding="utf-8")
        (options.results / "mlp.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
