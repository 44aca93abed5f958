"""The latency of a study's networks: timed together, after all else, in cells that are no arms of the table.

Networks that run at different moments meet a machine in different states: two of one shape once read 1.07 and 0.51 ms.
So all networks on one data set run in turns, and networks whose tensors have the same shapes share one reading, for
their weights take no part in it; where a runtime makes use of zeros, those that have as many as well. Anything new has
all of them timed anew, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from topiarist.architecture import WEIGHTS_FILE
from topiarist.deploy import bench, get_target
from topiarist.errors import TopiaristError
from topiarist.measure import Rounds
from topiarist.studies.arms import ARMS
from topiarist.studies.cells import Cell, finished, folder, note_failure, read_result, store, unfold
from topiarist.studies.data_paths import placed
from topiarist.studies.job import Job, Result
from topiarist.studies.queue import Event, Progress

ROUNDS = Rounds(count=50, seconds=60.0)
"""Of all networks on one data set, for each target."""


def latency_cell(cell: Cell) -> Cell:
    """Returns the cell that times a network: arms that train one pruned shape share it."""
    pruned = (need for need in cell.needs if need.arm == "pruned" and ARMS[cell.arm].shape == "pruned")
    return Cell("latency", cell.network, cell.data, cell.seed, cell.method, cell.budget, needs=(next(pruned, cell),))


def latency_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Returns the cells that time the networks of these cells and of all that they need, each once."""
    return tuple(dict.fromkeys(latency_cell(cell) for cell in unfold(cells) if cell.arm in ARMS))


def time_together(
    cells: Sequence[Cell], out: Path, targets: Sequence[str], report: Progress, data_folder: Path | None = None
) -> None:
    """Times the networks of latency cells together, unless these very cells were timed together before.

    Args:
        cells: of networks that are finished.
        out: folder of the study, which the caller has locked.
        targets: names of runtimes; the first one's median is ``latency_ms``.
        report: called when a cell is finished.
        data_folder: where relative paths of data begin.
    """
    session = _session(cells, targets)
    if all(_session_of(cell, out) == session for cell in cells):
        for cell in cells:
            report(Event(cell, "reused"))
        return
    for data in dict.fromkeys(cell.data for cell in cells):
        here = [cell for cell in cells if cell.data == data]
        found = {cell: _Found(_shape(cell, folder(out, cell.needs[0]))) for cell in here}
        for zeros in (False, True):
            chosen = [target for target in targets if get_target(target).reads_zeros == zeros]
            _time(found, chosen, zeros, out, data_folder)
        for cell in here:
            _finish(cell, out, found[cell], targets[0], session, report)


def _session(cells: Sequence[Cell], targets: Sequence[str]) -> str:
    """Returns what tells one session from another: the cells that were timed together, and where."""
    return _digest([sorted(cell.key for cell in cells), list(targets)])


def _session_of(cell: Cell, out: Path) -> str:
    return str(read_result(folder(out, cell)).get("session", "")) if finished(out, cell) else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]


@dataclass
class _Found:
    """What is known of a network: its shape, and its readings or why there are none.

    Attributes:
        shape: names networks whose tensors are alike.
        latency: by runtime, its reading.
        zeros: by runtime that zeros make faster, the name of networks that have as many too.
        reason: why there is no reading.
    """

    shape: str
    latency: dict[str, Result] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def _shape(cell: Cell, path: Path, *, zeros: bool = False) -> str:
    """Returns the same for networks whose tensors have the same names and shapes, and as many zeros, in per cent.

    A damaged one is like no other.
    """
    try:
        with safe_open(str(path / WEIGHTS_FILE), "pt") as tensors:
            names = sorted(tensors.keys())
            shapes: dict[str, object] = {name: tensors.get_slice(name).get_shape() for name in names}
            if zeros:
                shapes |= {f"{name} zeros": _zeros(tensors.get_tensor(name)) for name in names}
    except (SafetensorError, OSError):
        return _digest(cell.key)
    return _digest([cell.network, cell.data, shapes])


def _zeros(tensor: Tensor) -> int:
    """Returns how many of a hundred entries are zero."""
    return round(100 * float((tensor == 0).double().mean())) if tensor.numel() else 0


def _time(found: dict[Cell, _Found], targets: Sequence[str], zeros: bool, out: Path, data_folder: Path | None) -> None:
    """Times one network of each shape on these runtimes, all of them interleaved."""
    shapes: dict[str, list[Cell]] = {}
    for cell in found if targets else ():
        shapes.setdefault(_shape(cell, folder(out, cell.needs[0]), zeros=zeros), []).append(cell)
    networks: dict[str, nn.Module] = {}
    jobs: dict[str, Job] = {}
    for shape, cells in shapes.items():
        try:
            networks[shape], job = _loaded(cells, out, jobs, data_folder)
        except TopiaristError as error:
            for cell in cells:
                found[cell].reason = str(error)
    if not networks:
        return
    done = bench(networks, job.data.example(), targets, rounds=ROUNDS, macs=dict.fromkeys(networks), memory=False)
    if done.interrupted:
        raise KeyboardInterrupt
    for reading in done.readings:
        for cell in shapes[reading.network]:
            value = asdict(reading.latency) if reading.latency else {"reason": reading.reason}
            found[cell].latency[reading.setting.target] = value
            if zeros:
                found[cell].zeros[reading.setting.target] = reading.network


def _loaded(cells: Sequence[Cell], out: Path, jobs: dict[str, Job], data_folder: Path | None) -> tuple[nn.Module, Job]:
    """Returns the first of these networks, which are of one shape, that can be loaded.

    Raises:
        TopiaristError: none of them can.
    """
    problem: TopiaristError | None = None
    for cell in cells:
        if cell.network not in jobs:
            jobs[cell.network] = Job.of(replace(cell, data=placed(cell.data, data_folder)), out, ())
        try:
            return jobs[cell.network].network(folder(out, cell.needs[0])), jobs[cell.network]
        except TopiaristError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _finish(cell: Cell, out: Path, found: _Found, first: str, session: str, report: Progress) -> None:
    """Writes the result of a latency cell, or why there is none on the first runtime."""
    reading = found.latency.get(first, {})
    if reason := found.reason or reading.get("reason"):
        note_failure(out, cell, str(reason))
        report(Event(cell, "failed", error=str(reason)))
        return
    known: Result = {"shape": found.shape, "session": session, **({"zeros": found.zeros} if found.zeros else {})}
    store(cell, out, {"latency_ms": reading["value"], "latency": found.latency, **known})
    report(Event(cell, "finished"))
