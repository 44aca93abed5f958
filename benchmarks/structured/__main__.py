"""Every structured method of the registry, and Torch-Pruning's, on the same trained networks, budgets and seeds.

    python benchmarks/structured --data FOLDER [--seeds 5] [--methods l1 tp:l1 …] [--networks resnet20] [--out …]
    python benchmarks/structured --mini        # a miniature on scikit-learn's digits, in minutes
    python benchmarks/structured --data FOLDER --methods random l1 tp:l1 --scratch --out runs/part --stem part
    python benchmarks/structured --report-only # the tables anew from what the run's folder holds

FOLDER holds ``fashion_mnist.npz`` and ``cifar10.npz``, as ``fetch.py`` writes them. For each seed a quarter-width
VGG-11 and a ResNet-20 are trained; every method prunes them to 50 % and 30 % of their MACs, and the same short
fine-tuning follows. Shapes of four methods are trained from scratch as well. Every finished cell is a folder of its
own in the run's folder, so a killed run goes on. Needs `torch-pruning==1.6.1`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import images
import plan
import results
import table
import work

from topiarist.studies import Cell, run_cells
from topiarist.studies.cells import finished, prepare, result, unfold, write_json
from topiarist.studies.progress import Live

HERE = Path(__file__).resolve().parent.parent
PRELOAD = ("work", "lightning_fabric", "safetensors.torch", "torch_pruning", "scipy.stats")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="holds fashion_mnist.npz and cifar10.npz")
    parser.add_argument(
        "--out", type=Path, help="folder of the run (runs/structured, with --mini runs/structured-mini)"
    )
    parser.add_argument("--stem", default="structured", metavar="NAME", help="name of the page's files (structured)")
    parser.add_argument("--seeds", type=int, help="how many (5; with --mini 2)")
    parser.add_argument("--finals", type=int, help="seeds on which the best of each side meet (10; with --mini 3)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="ours, and Torch-Pruning's as tp:NAME; all")
    parser.add_argument("--networks", nargs="+", choices=("vgg11", "resnet20"), help="both by default")
    parser.add_argument("--images", type=int, help="training images (10,000; on a GPU 50,000)")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--limit", type=float, default=240, help="CPU seconds that one pruning may take")
    parser.add_argument("--mini", action="store_true", help="a miniature on digits")
    parser.add_argument(
        "--scratch",
        nargs="*",
        metavar="NETWORK",
        default=["vgg11", "digitsnet"],
        help="networks with the arms from scratch (vgg11; resnet20 takes an hour more, at 50 %% of the MACs)",
    )
    parser.add_argument("--report-only", action="store_true", help="compute nothing")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.methods or []) - set(plan.everyone())):
        parser.error(f"there is no method {unknown[0]}: take some of {', '.join(plan.everyone())}")
    return chosen


def main() -> None:
    chosen = options()
    out = chosen.out or Path("runs/structured-mini" if chosen.mini else "runs/structured")
    settings = [
        setting
        for setting in plan.settings(chosen.images or _images(), chosen.mini)
        if not chosen.networks or any(f":{name}" in setting.network for name in chosen.networks)
    ]
    names = chosen.methods or plan.everyone()
    seeds = range(chosen.seeds or (2 if chosen.mini else 5))
    more = range(chosen.finals or (3 if chosen.mini else 10))
    prepare(out)
    if not chosen.report_only:
        for setting in settings:
            images.prepare(setting, chosen.data, out)
        write_json(out / "machine.json", table.machine(chosen.workers, chosen.threads))
        worker = work.Worker(out, chosen.threads, chosen.limit)
        _run(list(plan.cells(settings, names, seeds)), worker, chosen.workers)
        asked = [setting for setting in settings if any(f":{name}" in setting.network for name in chosen.scratch)]
        if asked:
            wanted = results.scratch_plan(out, asked, names, seeds)
            _run([cell for _, arms in wanted for cell in arms], worker, chosen.workers)
        pairs = list(results.finalists(results.gather(out, settings, names, seeds), settings))
        _run(
            [plan.pruned(s, name, macs, n) for n in more for s, macs, *both in pairs for name in both],
            worker,
            chosen.workers,
        )
        _run(
            [plan.timed(s, name, macs, seeds[0]) for s in settings for name in names for macs in plan.BUDGETS],
            worker,
            1,
        )
    found = results.gather(out, settings, names, seeds)
    found["finals"] = results.finals(out, found, settings, more)
    found["machine"] = json.loads((out / "machine.json").read_text())
    arms = [cell for _, cells in results.scratch_plan(out, settings, names, seeds) for cell in cells]
    done = [cell for cell in unfold([*plan.cells(settings, names, seeds), *arms]) if finished(out, cell)]
    found["cpu_hours"] = sum(result(out, cell)["processor_seconds"] for cell in done) / 3600
    stem = (out if chosen.mini or chosen.out else HERE) / chosen.stem
    table.write(found, settings, stem, _command(chosen), part=set(names) != set(plan.everyone()))
    print(stem.with_suffix(".md").read_text().partition("\n## ")[2].partition("\n## ")[0])


def _run(cells: list[Cell], worker: work.Worker, workers: int) -> None:
    with Live(len(unfold(cells))) as live:
        run_cells(cells, worker.out, worker, workers=workers, preload=PRELOAD, progress=live)


def _command(chosen: argparse.Namespace) -> str:
    """The command that makes this run anew: what a reader must know of it."""
    words = ["python benchmarks/structured", "--mini" if chosen.mini else "--data FOLDER"]
    for name in ("methods", "networks", "seeds", "finals", "images"):
        if (value := getattr(chosen, name)) is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return " ".join([*words, "--scratch"] if not chosen.scratch else words)


def _images() -> int | None:
    import torch

    return 50_000 if torch.cuda.is_available() else None


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch_pruning")
    main()
