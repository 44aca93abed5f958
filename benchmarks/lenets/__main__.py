"""The unstructured methods on MNIST's LeNets, beside the numbers that their papers report.

    python benchmarks/lenets FOLDER [--networks lenet300] [--seeds 5] [--workers 1] [--out runs/lenets]
    python benchmarks/lenets FOLDER --report-only

FOLDER holds ``mnist.npz`` as ``fetch.py`` writes it. Dropout and weight decay are chosen at seed 0 on 10,000 training
images held out for it; the test images are read once, in the end. Every finished cell is a folder of the run, so a
killed run goes on. On two cores the whole takes most of a day; LeNet-300-100 alone about three hours.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import plan
import table
import work

from topiarist.studies import Cell, run_cells
from topiarist.studies.cells import finished, prepare, result, unfold
from topiarist.studies.progress import Live

HERE = Path(__file__).resolve().parent.parent


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/lenets"))
    parser.add_argument("--results", type=Path, default=HERE, help="folder of lenets.md and lenets.json")
    parser.add_argument("--networks", nargs="+", choices=[network.name for network in plan.NETWORKS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--report-only", action="store_true", help="compute nothing")
    return parser.parse_args()


def main() -> None:
    asked = options()
    networks = [network for network in plan.NETWORKS if not asked.networks or network.name in asked.networks]
    prepare(asked.out)
    worker = work.Worker(asked.folder, asked.threads)
    for network in networks:
        if not asked.report_only:
            _run(plan.choices(network), worker, asked)
        if (chosen := choice(network, asked.out)) is not None and not asked.report_only:
            _run(list(plan.rest(network, range(asked.seeds), chosen)), worker, asked)
            _run(plan.records(network), worker, asked)
        if (best := table.smallest(network, asked.out)) is not None and not asked.report_only:
            seeds = range(plan.RECORD_SEEDS)
            _run([plan.record(network, plan.WHOLE, seed, best[0]) for seed in seeds], worker, asked)
    found = {network.name: table.gather(network, asked.out, range(asked.seeds), choice(network, asked.out))
             for network in plan.NETWORKS}  # fmt: skip
    (asked.results / "lenets.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.results / "lenets.md").write_text(table.report(found, asked.workers, asked.threads), encoding="utf-8")


def choice(network: plan.Network, out: Path) -> tuple[float, float] | None:
    """Dropout and weight decay of the fewest mistakes on held-out images; ``None`` until all have been tried."""
    cells = plan.choices(network)
    if not all(finished(out, cell) for cell in cells):
        return None
    errors = [result(out, cell)["error"] for cell in cells]
    return network.tried[errors.index(min(errors))]


def _run(cells: list[Cell], worker: work.Worker, asked: argparse.Namespace) -> None:
    with Live(len(unfold(cells))) as live:
        run_cells(cells, asked.out, worker, workers=asked.workers, preload=("work",), progress=live)


if __name__ == "__main__":
    main()
