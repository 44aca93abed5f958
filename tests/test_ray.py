"""Studies on a Ray cluster: a real one on this machine, small, whose workers are killed in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from topiarist.cli import main
from topiarist.errors import TopiaristError
from topiarist.studies import Cell, RayCluster, Study, run_cells
from topiarist.studies.cells import unfold
from topiarist.studies.work import work as arms_work

STUDY = {
    "network": "zoo:digitsnet?width=0.25",
    "data": "digits?train=200",
    "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
    "seeds": [0, 1],
    "recipe": {"epochs": 1, "lr": 0.05},
    "finetune": {"epochs": 2, "lr": 0.01, "schedule": "constant"},
    "arms": ["finetune"],
}

CELLS = """
import json, os, signal, sys
from pathlib import Path
from topiarist.errors import TopiaristError
from topiarist.studies import Cell, RayCluster, Study, run_cells
from topiarist.studies.cells import failure

OUT = Path(sys.argv[1])

def note(word, cell):
    with (OUT / "log").open("a") as log:
        log.write(f"{word} {cell.key}\\n")
"""

DISTURBED = (
    CELLS
    + """
def work(cell, folder, needs):
    from topiarist.studies.work import work as compute
    from topiarist.train import checkpoint

    if (cell.arm, cell.seed) == ("finetune", 0):
        if (folder / "checkpoint.pt").exists():
            note("resumed", cell)
        else:
            save = checkpoint.save

            def save_and_die(path, state):
                save(path, state)
                if state["rows"]:  # an epoch is done
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.save = save_and_die
    note("started", cell)
    values = compute(cell, folder, needs)
    note("finished", cell)
    return values

def hopeless(cell, folder, needs):
    note("started", cell)
    if cell.arm == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}

def meet(cell, folder, needs):
    with (OUT / "door").open("rw"[cell.seed]):  # opens only when somebody opens the other side
        return {"gpu": os.environ["CUDA_VISIBLE_DEVICES"]}

def cells(arm, *seeds):
    return [Cell(arm, "net", "data", seed) for seed in seeds]

assert "ray" not in sys.modules
import ray
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
events, told = [], {}
study = Study.of(json.loads(sys.argv[2]))
told["study"] = run_cells(
    study.cells(), OUT, work, executor=RayCluster(), progress=lambda event: events.append([event.state, event.cell.key])
).failed
told["events"] = events
bad = run_cells([*cells("bad", 0), *cells("good", 0)], OUT, hopeless, executor=RayCluster(retries=1))
told["bad"] = [list(bad.finished), bad.failed]
os.mkfifo(OUT / "door")
told["met"] = run_cells(cells("meet", 0, 1), OUT, meet, executor=RayCluster(num_gpus=0.5)).failed
try:
    run_cells(cells("large", 0), OUT, meet, executor=RayCluster(num_gpus=2))
except TopiaristError as error:
    told["large"] = str(error)
told["alive"] = ray.is_initialized()  # a cluster that was there stays
print(json.dumps(told))
"""
)

INTERRUPTED = (
    CELLS
    + """
def work(cell, folder, needs):
    if cell.arm == "stop" and not (OUT / "worker").exists():
        (OUT / "worker").write_text(str(os.getpid()))
        os.kill(int((OUT / "driver").read_text()), signal.SIGINT)
        signal.pause()
    note("finished", cell)
    return {}

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
(OUT / "driver").write_text(str(os.getpid()))
first = Cell("first", "net", "data", 0)
cells = [Cell(arm, "net", "data", 0, needs=(first,)) for arm in ("stop", "last")]
if "again" in sys.argv:
    outcome = run_cells(cells, OUT, work)
else:
    outcome = run_cells(cells, OUT, work, executor=RayCluster(workers=1))
print(json.dumps([len(outcome.reused), len(outcome.finished), outcome.failed]))
"""
)


def script(tmp_path: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    path, out = tmp_path / "script.py", tmp_path / "out"
    path.write_text(text)
    out.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # else it leaves a token in the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(path), str(out), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def results(out: Path, keys: list[str]) -> dict[str, object]:
    """Everything that the cells say and hold, but for timings."""
    timings = ("seconds", "processor_seconds")
    found = {}
    for key in keys:
        values = json.loads((out / "cells" / key / "result.json").read_text())
        tensors = (out / "cells" / key / "model.safetensors").read_bytes()
        found[key] = ({name: value for name, value in values.items() if name not in timings}, tensors)
    return found


@pytest.mark.nightly
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = script(tmp_path, DISTURBED, json.dumps(STUDY))
    assert done.returncode == 0, done.stderr
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray talks as well
    log = (tmp_path / "out" / "log").read_text().splitlines()
    keys = [cell.key for cell in unfold(Study.of(STUDY).cells())]
    struck = next(key for key in keys if "finetune-s0" in key)

    # The study: all is there; the killed cell was begun twice and went on, nothing was finished twice.
    assert told["study"] == {}
    assert log.count(f"resumed {struck}") == 1
    assert {key: log.count(f"started {key}") for key in keys} == {key: 1 + (key == struck) for key in keys}
    assert {key: log.count(f"finished {key}") for key in keys} == dict.fromkeys(keys, 1)
    assert sorted(told["events"]) == sorted([state, key] for state in ("started", "finished") for key in keys)
    assert not list((tmp_path / "out" / "drafts").glob("digits*"))

    # A run in one process that nothing disturbs gives the same, to the bit.
    assert run_cells(Study.of(STUDY).cells(), tmp_path / "calm", arms_work).ok
    assert results(tmp_path / "out", keys) == results(tmp_path / "calm", keys)

    # A cell that kills every worker is given up and told, and takes no other with it.
    bad, good = (Cell(arm, "net", "data", 0).key for arm in ("bad", "good"))
    finished, failed = told["bad"]
    assert finished == [good]
    assert list(failed) == [bad]
    assert "after 1 retries" in failed[bad]
    assert log.count(f"started {bad}") == 2

    # Two cells of half a GPU run at the same time, on the same one; two whole ones are not to be had.
    assert told["met"] == {}
    gpus = [json.loads(path.read_text())["gpu"] for path in tmp_path.glob("out/cells/net-data-meet-*/result.json")]
    assert gpus == ["0", "0"]
    assert "2 GPUs" in told["large"]
    assert told["alive"]


@pytest.mark.nightly
def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    stopped = script(tmp_path, INTERRUPTED)
    assert "KeyboardInterrupt" in stopped.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "out" / "worker").read_text()), 0)
    assert json.loads(script(tmp_path, INTERRUPTED, "again").stdout) == [1, 2, {}]
    log = (tmp_path / "out" / "log").read_text().splitlines()
    assert len(set(log)) == len(log) == 3


@pytest.mark.parametrize(
    ("cluster", "resources", "places"),
    [
        (RayCluster(), {"CPU": 4.0}, 4),
        (RayCluster(), {}, 0),
        (RayCluster(num_cpus=1.5), {"CPU": 4.0, "GPU": 1.0}, 2),
        (RayCluster(num_cpus=0.1), {"CPU": 1.0}, 10),
        (RayCluster(num_gpus=0.25), {"CPU": 16.0, "GPU": 2.0}, 8),
        (RayCluster(num_gpus=0.25), {"CPU": 6.0, "GPU": 2.0}, 6),
        (RayCluster(num_gpus=0.6), {"CPU": 16.0, "GPU": 3.0}, 3),  # never across two
        (RayCluster(num_gpus=2), {"CPU": 16.0, "GPU": 3.0}, 1),
        (RayCluster(num_gpus=1), {"CPU": 16.0}, 0),
    ],
)
def test_room_on_a_node(cluster: RayCluster, resources: dict[str, float], places: int) -> None:
    assert cluster.cells_on(resources) == places


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_cpus": 0},
        {"num_cpus": 1e-5},
        {"num_cpus": "2"},
        {"num_gpus": -1},
        {"num_gpus": 1.5},
        {"num_gpus": 1 / 3},
        {"num_gpus": float("nan")},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": 10**20},
        {"workers": 0},
        {"workers": 10**9},
        {"address": None},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(TopiaristError, match=next(iter(wrong))):
        RayCluster(**wrong)


def test_without_ray_one_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    words = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--executor", "ray"]) == 2
    assert "pip install 'topiarist[ray]'" in capsys.readouterr().err
    assert main([*words, "--ray.num_gpus", "0.5"]) == 2
    assert "--executor ray" in capsys.readouterr().err
