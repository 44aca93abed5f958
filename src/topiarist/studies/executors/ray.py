"""Cells computed on a Ray cluster, local or remote: fractions of GPUs, and retries where a worker is lost.

Ray says which worker computes what and when; what is computed lies in the folders of the cells, which all nodes must
see under the same path. Ray is an extra, and imported when a study is run on it.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from math import ceil
from pathlib import Path
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import check_fields
from topiarist.studies.cells import Cell, Work, finished
from topiarist.studies.executors.base import LOCK, Crew, attempt
from topiarist.studies.executors.local import default_workers

OBJECTS = 100 * 2**20
"""Bytes of memory for objects on a local cluster: results are folders, what goes through Ray are a few words."""

FRESH = 1.0
"""Seconds after which the cluster is asked again how large it is."""


MOST = 1_000_000
"""No run has more workers, no cell more retries: numbers that Ray can hold."""


@dataclass(frozen=True)
class RayCluster:
    """Cells are tasks on a Ray cluster.

    Attributes:
        address: ``"local"`` starts a cluster on this machine for the run; ``"auto"`` finds the one that runs here, and
            ``"HOST:PORT"`` another one. Its nodes need the same Topiarist, and must see the study's folder under the
            same path.
        num_gpus: GPUs for each cell; a fraction lets several cells share one.
        num_cpus: processors for each cell.
        retries: how often a cell is begun again whose worker or node was lost; it goes on from its checkpoint.
        workers: how many cells at a time; as many as the cluster has room for by default.

    Raises:
        TopiaristError: a number is out of range.
    """

    address: str = "local"
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    retries: int = 3
    workers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "a Ray cluster")
        for name, legal, wanted in (
            ("num_cpus", _tellable(self.num_cpus) and self.num_cpus > 0, "a multiple of 0.0001 above 0"),
            (
                "num_gpus",
                _tellable(self.num_gpus) and _placeable(self.num_gpus),
                "a multiple of 0.0001 below 1, or whole",
            ),
            ("retries", 0 <= self.retries <= MOST, f"from 0 to {MOST:,}"),
            ("workers", self.workers is None or 1 <= self.workers <= MOST, f"from 1 to {MOST:,}"),
        ):
            if not legal:
                raise TopiaristError(f"{name} of a Ray cluster is {getattr(self, name)}, but must be {wanted}.")

    def crew(self, out: Path, work: Work, preload: Sequence[str] = ()) -> Crew:
        """Who computes the cells; the cluster is joined, or started.

        Raises:
            TopiaristError: Ray is not installed, the cluster cannot be reached, or no node of it is large enough.
        """
        return _Tasks(self, out.absolute(), work)

    def places(self, resources: Mapping[str, float]) -> int:
        """How many cells find room on a node with these resources."""
        processors = int(resources.get("CPU", 0) / self.num_cpus + 1e-9)
        if not self.num_gpus:
            return processors
        gpus = int(resources.get("GPU", 0))
        # A cell lies on one GPU or on several whole ones, never across two.
        each = gpus * int(1 / self.num_gpus + 1e-9) if self.num_gpus < 1 else gpus // int(self.num_gpus)
        return min(processors, each)


def _tellable(amount: float) -> bool:
    """Whether Ray, which counts resources in ten-thousandths, knows such an amount."""
    return abs(amount * 1e4 - round(amount * 1e4)) < 1e-6 * max(1.0, amount)


def _placeable(gpus: float) -> bool:
    return 0 <= gpus < 1 or (gpus >= 1 and gpus % 1 == 0)


class _Tasks:
    """Computes each cell as a task of the cluster."""

    def __init__(self, cluster: RayCluster, out: Path, work: Work) -> None:
        self.cluster, self.out, self.work = cluster, out, work
        self.ray = _imported()
        self.owned = not self.ray.is_initialized()
        if self.owned:
            _join(self.ray, cluster)
        try:
            self._check()
        except BaseException:
            self.stop()
            raise
        options = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "max_retries": cluster.retries}
        self.task = self.ray.remote(_compute).options(**options)
        self.running: dict[Any, tuple[Cell, float]] = {}
        self.local = self.owned and cluster.address == "local"
        self.looked, self.known = -FRESH, 0

    @property
    def busy(self) -> int:
        return len(self.running)

    @property
    def room(self) -> int:
        if self.cluster.workers and not self.local:
            return self.cluster.workers - self.busy
        if time.monotonic() > self.looked + FRESH:  # clusters grow and shrink
            self.looked, self.known = time.monotonic(), self._places()
        return self.known + 1 - self.busy  # one cell waits for the next place, which then is not empty for a moment

    def start(self, cell: Cell) -> None:
        threads = max(1, int(self.cluster.num_cpus))
        task = self.task.remote(cell, self.out, self.work, threads, installed("topiarist"))
        self.running[task] = (cell, time.perf_counter())

    def ended(self) -> list[tuple[Cell, float, str]]:
        if not self.running:
            return []
        self.ray.wait(list(self.running), num_returns=1)
        over, _ = self.ray.wait(list(self.running), num_returns=self.busy, timeout=0)
        return [self._farewell(task) for task in over]

    def stop(self) -> None:
        running = list(getattr(self, "running", ()))
        for task in running:
            self.ray.cancel(task, force=True)
        if running:
            self.ray.wait(running, num_returns=len(running), timeout=10)
        if self.owned:
            self.ray.shutdown()

    def _farewell(self, task: Any) -> tuple[Cell, float, str]:
        cell, begin = self.running.pop(task)
        try:
            told = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            told = f"Ray could not compute it, after {self.cluster.retries} retries ({type(error).__name__}: {first})"
        return cell, time.perf_counter() - begin, told and ("" if finished(self.out, cell) else told)

    def _places(self) -> int:
        return sum(self.cluster.places(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def _check(self) -> None:
        if self.cluster.workers is None and not self._places():
            wants = f"{self.cluster.num_cpus:g} processors and {self.cluster.num_gpus:g} GPUs"
            raise TopiaristError(
                f"No node of the Ray cluster has the {wants} that a cell is to get: ask for less, or say how many "
                "workers a cluster will have that is still to grow."
            )


def _compute(cell: Cell, out: Path, work: Work, threads: int, version: str) -> str:
    """One task: why the cell failed, empty for success."""
    if version != (own := installed("topiarist")):
        return f"{platform.node()} has Topiarist {own}: install {version} on all nodes"
    if not (out / LOCK).exists():
        return f"{platform.node()} does not see the folder {out}: choose one that all nodes of the cluster share"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return attempt(cell, out, work)


def _imported() -> Any:
    # What Ray reads from the environment while it is imported or started; whoever set these decides.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody outside
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # who asks for no GPU sees none
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise TopiaristError("Ray is not installed: `pip install 'topiarist[ray]'` brings it.") from error


def _join(ray: Any, cluster: RayCluster) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if cluster.address == "local":
            processors = ceil(cluster.workers * cluster.num_cpus) if cluster.workers else default_workers()
            ray.init("local", num_cpus=processors, include_dashboard=False, object_store_memory=OBJECTS, **quiet)
        else:
            ray.init(cluster.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # Ray's ConnectionError is an OSError
        told = " ".join(str(error).split())
        raise TopiaristError(
            f"The Ray cluster {cluster.address!r} cannot be joined ({told}): start one with `ray start --head`, or "
            "take the address 'local'."
        ) from error
