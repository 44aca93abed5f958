"""Cells run once, in order, whatever fails, is killed or is interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from topiarist.errors import TopiaristError
from topiarist.studies import Cell, run_cells
from topiarist.studies.cells import finished, folder, result
from topiarist.studies.executors.local import _interrupts_held


def cell(name, *needs, **settings):
    return Cell(name, "net", "data", 0, settings=settings, needs=needs)


def test_cells_read_what_they_need_and_are_computed_once(tmp_path):
    done = []

    def work(each, here, needs):
        done.append(each.arm)
        (here / "value").write_text("".join((need / "value").read_text() for need in needs) + each.arm)
        return {"accuracy": 1.0}

    a = cell("a")
    top = cell("c", a, cell("b", a))
    first = run_cells([top], tmp_path, work)
    assert first.ok
    assert (folder(tmp_path, top) / "value").read_text() == "aabc"
    second = run_cells([top, cell("d", top)], tmp_path, work)
    assert done == ["a", "b", "c", "d"]
    assert len(second.reused) == 3
    assert result(tmp_path, top)["accuracy"] == 1.0


def test_the_rest_goes_on_when_a_cell_fails(tmp_path):
    def work(each, here, needs):
        if each.arm == "bad" and not (here / "tried").exists():
            (here / "tried").write_text("")
            raise TopiaristError("it is bad: make it good.")
        return {}

    bad = cell("bad")
    above = cell("above", bad)
    events = []
    outcome = run_cells([above, cell("good")], tmp_path, work, progress=lambda e: events.append((e.cell.arm, e.state)))
    assert outcome.failed[bad.key] == "it is bad: make it good."
    assert "not tried" in outcome.failed[above.key]
    assert not outcome.ok
    assert ("above", "blocked") in events
    assert ("good", "finished") in events
    assert not finished(tmp_path, bad)
    assert run_cells([above], tmp_path, work).ok  # what the failed cell left behind is there again


def test_two_runs_do_not_share_a_folder(tmp_path):
    def work(each, here, needs):
        run_cells([cell("other")], tmp_path, work)
        return {}

    outcome = run_cells([cell("one")], tmp_path, work)
    assert "another run is using" in next(iter(outcome.failed.values()))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TopiaristError, match="cannot write to the folder"):
        run_cells([cell("a")], tmp_path / "file" / "out", lambda *_: {})


SCRIPT = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
from topiarist.studies.cells import Cell
from topiarist.studies.queue import run_cells

OUT = Path(sys.argv[1])
base = Cell("base", "net", "data", 0)
FIRST = tuple(Cell("first", "net", "data", seed, needs=(base,)) for seed in (0, 1))
CELLS = [*FIRST, *(Cell(arm, "net", "data", seed, needs=FIRST) for arm in ("second", "third") for seed in (0, 1))]

def work(cell, folder, needs):
    with (OUT / "log").open("a") as log:
        log.write(f"{cell.arm} {cell.seed}\\n")
    once = OUT / "killed"
    if (cell.arm, cell.seed) == ("second", 0) and not once.exists():
        once.write_text("")
        (folder / "half").write_text("half done")
        while len(list((OUT / "cells").glob("net-data-first-*/result.json"))) < 2:
            os.sched_yield()  # the other worker may still be at the first arm
        parent = multiprocessing.parent_process()
        if "interrupt" in sys.argv[3:]:
            (OUT / "worker").write_text(str(os.getpid()))
            os.kill(parent.pid, signal.SIGINT)
        else:
            os.kill(parent.pid if parent and "run" in sys.argv[3:] else os.getpid(), signal.SIGKILL)
        signal.pause()
    return {"accuracy": float(cell.seed), "resumed": (folder / "half").exists()}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    outcome = run_cells(CELLS, OUT, work, workers=int(sys.argv[2]))
    print(json.dumps([len(outcome.reused), len(outcome.finished), outcome.failed]))
"""


def script(tmp_path, *words):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    source = str(Path(__file__).parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(path), str(tmp_path / "out"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.nightly)])
@pytest.mark.nightly
def test_a_killed_run_goes_on(tmp_path, workers):
    (tmp_path / "out").mkdir()
    killed = script(tmp_path, workers, "run")
    assert killed.returncode == -signal.SIGKILL
    again = script(tmp_path, workers, "run")
    assert again.returncode == 0, again.stderr
    log = (tmp_path / "out" / "log").read_text().split("\n")
    reused, done, failed = json.loads(again.stdout)
    assert not failed
    assert reused >= 3  # the base and both of the first arm
    assert reused + done == 7
    assert log.count("second 0") == 2
    assert all(log.count(line) == 1 for line in ("base 0", "first 0", "first 1", "third 0", "third 1"))
    second = next((tmp_path / "out" / "cells").glob("net-data-second-s0-*"))
    assert json.loads((second / "result.json").read_text())["resumed"]
    assert not list((tmp_path / "out" / "drafts").iterdir())


@pytest.mark.nightly
def test_a_killed_worker_is_a_failed_cell(tmp_path):
    (tmp_path / "out").mkdir()
    first = script(tmp_path, "2", "worker")
    assert first.returncode == 0, first.stderr
    _, done, failed = json.loads(first.stdout)
    assert done == 6
    assert ["second" in key and "-9" in told for key, told in failed.items()] == [True]
    assert json.loads(script(tmp_path, "2", "worker").stdout) == [6, 1, {}]


@pytest.mark.nightly
def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(tmp_path):
    (tmp_path / "out").mkdir()
    stopped = script(tmp_path, "2", "interrupt")
    assert "KeyboardInterrupt" in stopped.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "out" / "worker").read_text()), 0)
    reused, done, failed = json.loads(script(tmp_path, "2", "interrupt").stdout)
    assert (reused >= 3, reused + done, failed) == (True, 7, {})


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system cannot hold signals back")
def test_an_interrupt_while_the_server_of_the_workers_starts_is_not_lost():
    code = "import signal; signal.raise_signal(signal.SIGINT)"
    done = []

    def start() -> None:
        with _interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append(subprocess.run([sys.executable, "-c", code], check=False).returncode)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [0]  # a process that starts meanwhile does not notice one
