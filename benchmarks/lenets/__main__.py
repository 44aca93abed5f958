"""The unstructured methods on MNIST's LeNets, beside the numbers that their papers report.

    python benchmarks/lenets FOLDER [--networks lenet300] [--seeds 5] [--workers 1] [--out runs/lenets]
    python benchmarks/lenets FOLDER --report-only

FOLDER holds ``mnist.npz`` as ``fetch.py`` writes it. Dropout and weight decay are chosen at seed 0 on 10,000 training
images held out for it; the test images are read once, in the end. Every finished cell is a folder of the run, so a
killed run goes on; results that ``lenets.json`` has already are not computed again. LeNet-300-100 takes an hour or
two of one core, LeNet-5 ten to twenty-five.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import plan
import results
import table
import work

from topiarist.studies import Cell, run_cells
from topiarist.studies.cells import prepare, unfold
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
    parser.add_argument("--fresh", action="store_true", help="compute again what lenets.json has")
    return parser.parse_args()


def main() -> None:
    asked = options()
    networks = [network for network in plan.NETWORKS if not asked.networks or network.name in asked.networks]
    file = asked.results / "lenets.json"
    known = {} if asked.fresh else results.load(file)

    def run(cells: Iterable[Cell]) -> None:
        """Compute what is neither finished nor known, and take in what the run has."""
        cells = list(cells)
        missing = [cell for cell in cells if cell.key not in known]
        if missing and not asked.report_only:
            with Live(len(unfold(missing))) as live:
                worker = work.Worker(asked.folder, asked.threads)
                run_cells(missing, asked.out, worker, workers=asked.workers, preload=("work",), progress=live)
        results.add(known, asked.out, cells)
        results.save(known, file)

    prepare(asked.out)
    for network in networks:
        run(plan.choices(network))
        if (chosen := table.choice(network, known)) is None:
            continue
        run(plan.rest(network, range(asked.seeds), chosen))
        run(plan.records(network, chosen))
        if (best := table.smallest(network, known)) is not None:
            files = range(network.smallest.seeds)
            run([plan.record(network, plan.WHOLE, seed, best[0], chosen) for seed in files])
    found = {network.name: table.gather(network, known, range(asked.seeds)) for network in plan.NETWORKS}
    (asked.results / "lenets.md").write_text(table.report(found, asked.workers, asked.threads), encoding="utf-8")


if __name__ == "__main__":
    main()
