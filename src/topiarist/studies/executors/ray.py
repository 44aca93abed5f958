"""Cells computed on a Ray cluster, local or remote: fractions of GPUs, and retries where a worker is lost.

Ray decides which worker computes what and when; results are in the folders of the cells, which all nodes must see under
the same path. Ray is an extra, and imported when a study is run on it.
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
from topiarist.files import check_fields, one_line, shown
from topiarist.studies.cells import Cell, Work, finished
from topiarist.studies.executors.base import Ended, Pool, attempt
from topiarist.studies.executors.local import default_workers

OBJECTS = 100 * 2**20
"""Bytes of memory for objects on a local cluster: results are folders, only short texts pass through Ray."""

REFRESH = 1.0
"""Seconds after which the size of the cluster is read again."""

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
        retries: how often a cell whose worker or node was lost is started again; it goes on from its checkpoint.
        workers: how many cells at a time; as many as fit on the cluster by default.

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
            ("num_cpus", _countable(self.num_cpus) and self.num_cpus > 0, "a multiple of 0.0001 above 0"),
            (
                "num_gpus",
                _countable(self.num_gpus) and _on_whole_gpus(self.num_gpus),
                "a multiple of 0.0001 below 1, or whole",
            ),
            ("retries", 0 <= self.retries <= MOST, f"from 0 to {MOST:,}"),
            ("workers", self.workers is None or 1 <= self.workers <= MOST, f"from 1 to {MOST:,}"),
        ):
            if not legal:
                raise TopiaristError(f"{name} of a Ray cluster is {getattr(self, name)}; it must be {wanted}")

    def pool(self, out: Path, work: Work, preload: Sequence[str] = ()) -> Pool:
        """Returns the workers that compute the cells; joins the cluster, or starts it.

        Raises:
            TopiaristError: Ray is not installed, the cluster cannot be reached, or no node of it is large enough.
        """
        return _RayTasks(self, out.absolute(), work)

    def cells_on(self, resources: Mapping[str, float]) -> int:
        """Returns how many cells fit on a node with these resources."""
        processors = int(resources.get("CPU", 0) / self.num_cpus + 1e-9)
        if not self.num_gpus:
            return processors
        gpus = int(resources.get("GPU", 0))
        # A cell lies on one GPU or on several whole ones, never across two.
        each = gpus * int(1 / self.num_gpus + 1e-9) if self.num_gpus < 1 else gpus // int(self.num_gpus)
        return min(processors, each)


def _countable(amount: float) -> bool:
    """Returns whether Ray, which counts resources in ten-thousandths, can express the amount."""
    return abs(amount * 1e4 - round(amount * 1e4)) < 1e-6 * max(1.0, amount)


def _on_whole_gpus(gpus: float) -> bool:
    return 0 <= gpus < 1 or (gpus >= 1 and gpus % 1 == 0)


class _RayTasks:
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
        self.tasks: dict[Any, tuple[Cell, float]] = {}
        self.local = self.owned and cluster.address == "local"
        self.read_at, self.capacity = -REFRESH, 0

    @property
    def running(self) -> int:
        return len(self.tasks)

    @property
    def free(self) -> int:
        if self.cluster.workers and not self.local:
            return self.cluster.workers - self.running
        if time.monotonic() > self.read_at + REFRESH:  # clusters grow and shrink
            self.read_at, self.capacity = time.monotonic(), self._capacity()
        return self.capacity + 1 - self.running  # one cell waits, so that no worker is idle for a moment

    def start(self, cell: Cell) -> None:
        threads = max(1, int(self.cluster.num_cpus))
        task = self.task.remote(cell, self.out, self.work, threads, installed("topiarist"))
        self.tasks[task] = (cell, time.perf_counter())

    def wait(self) -> list[Ended]:
        if not self.tasks:
            return []
        self.ray.wait(list(self.tasks), num_returns=1)
        ended, _ = self.ray.wait(list(self.tasks), num_returns=self.running, timeout=0)
        return [self._receive(task) for task in ended]

    def stop(self) -> None:
        tasks = list(getattr(self, "tasks", ()))
        for task in tasks:
            self.ray.cancel(task, force=True)
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=10)
        if self.owned:
            self.ray.shutdown()

    def _receive(self, task: Any) -> Ended:
        cell, begin = self.tasks.pop(task)
        try:
            reason = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            lost = f"{type(error).__name__}: {one_line(error)}"
            reason = f"Ray could not compute it, after {self.cluster.retries} retries ({lost})"
        return Ended(cell, time.perf_counter() - begin, "" if reason and finished(self.out, cell) else reason)

    def _capacity(self) -> int:
        return sum(self.cluster.cells_on(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def _check(self) -> None:
        if self.cluster.workers is None and not self._capacity():
            needed = f"{self.cluster.num_cpus:g} processors and {self.cluster.num_gpus:g} GPUs"
            raise TopiaristError(
                f"no node of the Ray cluster has the {needed} that each cell needs; lower them, or set workers for a "
                "cluster that is still to grow"
            )


def _compute(cell: Cell, out: Path, work: Work, threads: int, version: str) -> str:
    """Computes the cell of one task; returns why it failed, empty for success."""
    if version != (own := installed("topiarist")):
        return f"{platform.node()} has Topiarist {own}; install {version} on all nodes"
    if not (out / "drafts").is_dir():
        return f"{platform.node()} does not see the folder {out}; choose one that all nodes of the cluster share"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return attempt(cell, out, work)


def _imported() -> Any:
    # Ray reads these while it is imported or started; values that are already set stay.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to anybody outside
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a cell without a GPU sees none
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise TopiaristError("Ray is not installed: run `pip install 'topiarist[ray]'`") from error


def _join(ray: Any, cluster: RayCluster) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if cluster.address == "local":
            processors = ceil(cluster.workers * cluster.num_cpus) if cluster.workers else default_workers()
            ray.init("local", num_cpus=processors, include_dashboard=False, object_store_memory=OBJECTS, **quiet)
        else:
            ray.init(cluster.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # Ray's ConnectionError is an OSError
        raise TopiaristError(
            f"cannot join the Ray cluster {shown(cluster.address)} ({one_line(error)}); start one with `ray start "
            "--head`, "
            "or use the address 'local'"
        ) from error
