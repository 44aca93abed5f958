"""Design patterns against uniform and direct pruning at equal parameters, and moved to other data and another depth.

    python benchmarks/guided.py FOLDER [--out runs/guided] [--seeds 5] [--epochs 3] [--workers 1]
    python benchmarks/guided.py FOLDER --mini
    python benchmarks/guided.py FOLDER --report-only

FOLDER holds ``mnist.npz`` and ``emnist_letters.npz``, as `fetch.py` writes them. Quarter-width VGGs; every
arm is trained from random weights by one recipe, and differs in its shape alone:

- uniform: every layer narrowed, or thinned, alike;
- direct: what network slimming, or magnitude, leaves of this network on these images, at the same seed;
- guided: the average of such shapes over all seeds, at the middle budget, stage by stage;
- transferred: that pattern, found on VGG-11 and mnist, on other data or another depth.

Shapes are chosen on training images alone; the test images are read in the end. Resumable: run it again after an
interruption. ``--mini`` only shows that all of it runs. Writes ``guided.md`` and ``guided.json`` beside this script
(for ``--mini`` into the run's folder), and the patterns and their pictures into the run's folder. The whole takes about
four hours of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import topiarist
from topiarist import Architecture, Budget, Recipe
from topiarist.data import Data
from topiarist.data.dataset import stratified
from topiarist.graph import Graph, Keep
from topiarist.guided import KernelPattern, WidthPattern
from topiarist.methods import make
from topiarist.report import save_pattern
from topiarist.studies import Cell, paired, run_cells, summarise, verdict
from topiarist.studies.cells import finished, folder, prepare, result, unfold
from topiarist.studies.progress import Live
from topiarist.train import Speed, reinitialise

HERE = Path(__file__).parent
TEST = 10_000
LAM = 3e-3
KINDS = {"slimming": "channels", "magnitude": "weights"}
ARMS = ("uniform", "guided", "transferred", "direct")
PATTERNS = {"slimming": WidthPattern, "magnitude": KernelPattern}


@dataclass(frozen=True)
class Target:
    """A network on some images, and what is built there.

    Attributes:
        title: in the tables.
        network: in the zoo.
        data: name of its file.
        images: of the training set.
        arms: beside uniform and direct pruning.
        budgets: method → fractions of the parameters that stay.
        exclude: method → layers that no pattern of VGG-11 knows; they stay whole in every arm.
    """

    title: str
    network: str
    data: str
    images: int
    arms: tuple[str, ...]
    budgets: dict[str, tuple[float, ...]]
    exclude: dict[str, tuple[str, ...]]


ALL = {"slimming": (0.4, 0.2, 0.1, 0.05), "magnitude": (0.2, 0.1, 0.05)}
SOME = {"slimming": (0.2, 0.1), "magnitude": (0.05,)}
MIDDLE = {"slimming": 0.2, "magnitude": 0.1}
SOURCE = Target("VGG-11, mnist", "vgg11", "mnist", 10_000, ("guided",), ALL, {})
HIDDEN = {"slimming": ("classifier*.bias",)}  # what the layer produces, and not what it reads
TARGETS = (
    SOURCE,
    Target("VGG-11, emnist letters", "vgg11", "emnist_letters", 20_000, ("transferred",), SOME, {}),
    Target("VGG-16, mnist", "vgg16", "mnist", 10_000, ("transferred",), SOME, HIDDEN),
)


@dataclass(frozen=True)
class Plan:
    """What a run does: its seeds, its epochs, and the most images of each target."""

    seeds: range
    epochs: int
    most: int

    def cells(self, target: Target, method: str) -> Iterator[Cell]:
        """All cells of a target and a method: direct shapes are found there, the others need no training there."""
        for seed in self.seeds:
            for share in target.budgets[method]:
                for arm in ("uniform", "direct", *target.arms):
                    yield self.cell(target, method, arm, share, seed)

    def cell(self, target: Target, method: str, arm: str, share: float, seed: int) -> Cell:
        """One shape, trained from scratch."""
        needs: tuple[Cell, ...] = ()
        if arm == "direct":
            needs = (self.found(target, method, seed),)
        elif arm in ("guided", "transferred"):
            needs = self.sources(method)
        return self._cell(target, method, arm, seed, {"params": share}, needs)

    def sources(self, method: str) -> tuple[Cell, ...]:
        """Where the pattern comes from."""
        return tuple(self.found(SOURCE, method, seed) for seed in self.seeds)

    def found(self, target: Target, method: str, seed: int) -> Cell:
        """A network that is trained whole, and the shapes that the method leaves of it."""
        return self._cell(target, method, "found", seed, {}, ())

    def _cell(
        self, target: Target, method: str, arm: str, seed: int, budget: dict[str, Any], needs: tuple[Cell, ...]
    ) -> Cell:
        settings: dict[str, Any] = {
            "recipe": {"epochs": self.epochs, "lr": 0.05, "batch_size": 64, "schedule": "cosine", "augment": False},
            "images": min(target.images, self.most),
            "test": min(TEST, self.most),
            "exclude": list(target.exclude.get(method, ())),
        }
        if arm == "found":
            settings |= {"shapes": list(target.budgets[method]), "lam": LAM}
        return Cell(arm, target.network, target.data, seed, method, budget, settings, needs)


@dataclass(frozen=True)
class Worker:
    """Computes cells (see `topiarist.studies.cells.Work`); ``source`` is the folder of the data."""

    source: Path

    def __call__(self, cell: Cell, here: Path, needs: tuple[Path, ...]) -> dict[str, Any]:
        torch.set_num_threads(1)
        data = self.data(cell)
        build = topiarist.make_model(
            f"zoo:{cell.network}",
            width=0.25,
            in_channels=1,
            input_size=data.input_shape[1],
            classes=data.classes,
        )
        torch.manual_seed(cell.seed)
        model = build()
        graph = topiarist.trace(model, data.example())
        recipe = Recipe(**cell.settings["recipe"])
        speed, checkpoint = Speed(evaluate_every=0), here / "training.ckpt"
        options: dict[str, Any] = {"seed": cell.seed, "speed": speed, "checkpoint": checkpoint}
        if cell.arm == "found":
            method = make("slimming", lam=cell.settings["lam"]) if cell.method == "slimming" else None
            topiarist.fit(model, data, recipe, method=method, graph=graph, **options)
            for share in cell.settings["shapes"]:
                budget = Budget(params=share, exclude=cell.settings["exclude"])
                done = topiarist.prune(model, data.example(), method or cell.method, budget, graph=graph)
                done.architecture.save(here / f"{share}.json")
            spent = topiarist.cost(graph)
        else:
            graph, keep = shape(cell, graph, needs)
            if cell.method == "slimming":
                model = Architecture.of(graph, keep).build(build)
                topiarist.fit(model, data, recipe, **options)
            else:
                reinitialise(model, graph, keep, seed=cell.seed, make_model=build)
                topiarist.fit(model, data, recipe, graph=graph, keep=keep, **options)
            spent = topiarist.cost(graph, keep)
        checkpoint.unlink(missing_ok=True)
        whole = topiarist.cost(graph)
        accuracy = topiarist.evaluate(model, data)
        return {"accuracy": accuracy, "params": spent.params / whole.params, "macs": spent.macs / whole.macs}

    def data(self, cell: Cell) -> Data:
        """The images of a cell: the same for all seeds."""
        whole = topiarist.load_data(f"npz:{self.source / cell.data}.npz")
        chosen, _ = stratified(whole.test_y, min(cell.settings["test"], len(whole.test_y)), 0)
        return replace(whole.subset(cell.settings["images"]), test_x=whole.test_x[chosen], test_y=whole.test_y[chosen])


def shape(cell: Cell, graph: Graph, needs: tuple[Path, ...]) -> tuple[Graph, Keep]:
    """What an arm keeps, and of which units."""
    share, sparse = cell.budget["params"], cell.method == "magnitude"
    units = graph.weights() if sparse else graph
    if cell.arm == "direct":
        return units, Architecture.load(needs[0] / f"{share}.json").keep
    kind = PATTERNS[cell.method]
    pattern = kind.uniform(graph) if cell.arm == "uniform" else found_pattern(cell.method, needs)
    more = {"seed": cell.seed} if sparse else {}
    return units, pattern.keep(graph, Budget(params=share, exclude=cell.settings["exclude"]), **more)


def found_pattern(method: str, folders: tuple[Path, ...]) -> WidthPattern | KernelPattern:
    """The average over the seeds, at the middle budget."""
    return PATTERNS[method].of(*(Architecture.load(each / f"{MIDDLE[method]}.json") for each in folders))


def gather(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """A row for each target, method, budget and arm whose cells are done."""
    rows = []
    for target in TARGETS:
        for method in KINDS:
            for share in target.budgets[method]:
                for arm in ("uniform", *target.arms, "direct"):
                    cells = {seed: plan.cell(target, method, arm, share, seed) for seed in plan.seeds}
                    done = {str(seed): result(out, cell) for seed, cell in cells.items() if finished(out, cell)}
                    place = {"target": target.title, "method": method, "budget": share, "arm": arm}
                    rows += [{**place, "seeds": done}] if done else []
    return rows


def table(rows: list[dict[str, Any]], patterns: dict[str, Any], plan: Plan, hours: float) -> str:
    lines = [
        "# Design patterns: guided and transferred shapes against uniform and direct pruning",
        "",
        f"Quarter-width VGGs, {plan.epochs} epochs from random weights for every arm, {len(plan.seeds)} seeds. "
        f"Accuracy in per cent of up to {min(TEST, plan.most):,} test images, mean ± standard deviation; differences "
        "are paired by seed, with 95 % intervals. At equal parameters a pattern that keeps early layers costs more "
        f"MACs, which stand beside. {hours:.1f} hours of processor on {os.cpu_count()} cores ({platform.machine()}), "
        f"topiarist {topiarist.__version__}, torch {torch.__version__}. Rerun: `python benchmarks/guided.py FOLDER`.",
    ]
    for target in TARGETS:
        for method, kind in KINDS.items():
            mine = [row for row in rows if row["target"] == target.title and row["method"] == method]
            if not mine:
                continue
            lines += ["", f"## {target.title}: {kind}", ""]
            lines += ["| parameters | arm | accuracy | MACs kept | against uniform |", "|---:|---|---:|---:|---|"]
            lines += [_line(row, mine) for row in mine]
    lines += ["", "## What the runs say", "", *_sentences(rows), "", *_pooled(rows), "", "## Patterns", ""]
    for method, pattern in patterns.items():
        told = ", ".join(f"{' '.join(reversed(place))} {100 * kept:.1f}" for place, kept in pattern.shares.items())
        lines.append(f"- {KINDS[method]}, per cent kept at {100 * MIDDLE[method]:g} % of the parameters: {told}")
    return "\n".join([*lines, ""])


def _values(row: dict[str, Any], what: str = "accuracy") -> dict[int, float]:
    return {int(seed): values[what] for seed, values in row["seeds"].items()}


def _fellow(row: dict[str, Any], rows: list[dict[str, Any]], arm: str) -> dict[str, Any] | None:
    place = [row[key] for key in ("target", "method", "budget")] + [arm]
    return next((r for r in rows if [r[key] for key in ("target", "method", "budget", "arm")] == place), None)


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    uniform, told = _fellow(row, rows, "uniform"), ""
    if uniform is not None and row is not uniform and _values(row).keys() & _values(uniform).keys():
        apart = paired(_values(row), _values(uniform))
        told = f"{apart.mean:+.2f}"
        told += "" if apart.low is None else f" ({apart.low:+.2f} to {apart.high:+.2f})"
    macs = summarise(list(_values(row, "macs").values())).mean
    accuracy = summarise(list(_values(row).values()))
    return f"| {100 * row['budget']:g} % | {row['arm']} | {accuracy} | {100 * macs:.1f} % | {told} |"


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """Guided against uniform; transferred against both of its neighbours."""
    told = []
    for row in rows:
        for other in ("uniform", "direct"):
            fellow = _fellow(row, rows, other)
            if row["arm"] not in ("guided", "transferred") or fellow is None:
                continue
            if not _values(row).keys() & _values(fellow).keys():
                continue
            place = f"{row['target']}, {KINDS[row['method']]}, {100 * row['budget']:g} %"
            told.append(f"- {place}: {verdict(row['arm'], other, paired(_values(row), _values(fellow)))}.")
    return told


def _pooled(rows: list[dict[str, Any]]) -> list[str]:
    """Of each target and kind the mean over all budgets, seed by seed, which alone are repetitions."""
    told = ["On average over the budgets:", ""]
    for target in TARGETS:
        for method in KINDS:
            mine = [row for row in rows if row["target"] == target.title and row["method"] == method]
            means = {arm: _averaged([row for row in mine if row["arm"] == arm]) for arm in ARMS}
            arm = next((arm for arm in target.arms if means[arm]), None)
            for other in ("uniform", "direct"):
                if arm and means[arm].keys() & means[other].keys():
                    apart = verdict(arm, other, paired(means[arm], means[other]))
                    told.append(f"- {target.title}, {KINDS[method]}: {apart}.")
    return told


def _averaged(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Seed → mean accuracy over rows, of the seeds that all of them have."""
    values = [_values(row) for row in rows]
    shared = set.intersection(*(set(each) for each in values)) if values else set()
    return {seed: fmean(each[seed] for each in values) for seed in sorted(shared)}


def spent_hours(cells: list[Cell], out: Path) -> float:
    done = [result(out, cell) for cell in unfold(cells) if finished(out, cell)]
    return sum(each["processor_seconds"] for each in done) / 3600


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the run (runs/guided, with --mini runs/guided-mini)")
    parser.add_argument("--results", type=Path, help="folder of guided.md and guided.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time, of one thread each")
    parser.add_argument("--mini", action="store_true", help="few images, one epoch, two seeds")
    parser.add_argument("--report-only", action="store_true", help="compute nothing")
    return parser.parse_args()


def main() -> None:
    asked = options()
    out = asked.out or Path("runs/guided-mini" if asked.mini else "runs/guided")
    plan = Plan(range(2), 1, 512) if asked.mini else Plan(range(asked.seeds), asked.epochs, 10**9)
    prepare(out)
    cells = [cell for target in TARGETS for method in KINDS for cell in plan.cells(target, method)]
    if not asked.report_only:
        with Live(len(unfold(cells))) as live:
            run_cells(cells, out, Worker(asked.folder), workers=asked.workers, progress=live)
    patterns = {}
    for method, kind in KINDS.items():
        sources = plan.sources(method)
        if all(finished(out, cell) for cell in sources):
            patterns[method] = found_pattern(method, tuple(folder(out, cell) for cell in sources))
            patterns[method].save(out / f"{kind}.json")
            save_pattern(patterns[method], out / f"{kind}.png")
    rows = gather(plan, out)
    results = asked.results or (out if asked.mini else HERE)
    told = {"patterns": {method: pattern.to_json() for method, pattern in patterns.items()}, "rows": rows}
    (results / "guided.json").write_text(json.dumps(told, indent=1) + "\n")
    (results / "guided.md").write_text(table(rows, patterns, plan, spent_hours(cells, out)), encoding="utf-8")


if __name__ == "__main__":
    main()
