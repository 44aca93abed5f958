"""A small study is killed at 20 random moments, and goes on each time: is the end what an undisturbed run gives?

    python benchmarks/kills.py    # writes benchmarks/kills.md

The command `topiarist study` runs in a process of its own, which gets SIGKILL at a moment that is drawn evenly from the
time an undisturbed run takes after its first cell has begun. Where a study ends before its moment comes, the next one
begins in a new folder. Half of the studies run in one process, half in two more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

STUDY = {
    "title": "Kills",
    "network": "zoo:digitsnet",
    "data": "digits",
    "prunings": [
        {"method": "slimming", "budget": {"macs": 0.5}},
        {"method": "magnitude", "budget": {"ratio": 0.2}},
    ],
    "seeds": [0],
    "recipe": {"epochs": 2, "lr": 0.05},
    "finetune": {"epochs": 2, "lr": 0.01, "schedule": "constant"},
    "arms": ["finetune", "scratch_b", "uniform", "lottery"],
    "cap": 2,
}
TIMINGS = {"seconds", "processor_seconds", "latency_ms", "latency"}


class Run:
    """`topiarist study` in a process of its own, with its first word about a cell awaited."""

    def __init__(self, file: Path, out: Path, workers: int) -> None:
        command = [sys.executable, "-m", "topiarist", "study", str(file), "--out", str(out), "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # No --json, which is quiet: a line on stderr tells each finished cell.
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.told = self.process.stderr.readline()
        self.begin = time.perf_counter()

    def end(self, after: float | None = None) -> bool:
        """Wait for the end, or kill it after so many seconds; whether it was killed."""
        try:
            self.process.communicate(timeout=None if after is None else max(0.0, after))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"the study ended with status {self.process.returncode}: {self.told}")
        return self.process.returncode == -signal.SIGKILL


def plain(value: Any) -> Any:
    """Results but for timings."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in TIMINGS}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, Any]:
    """Every file of every finished cell, but for timings, and the results of the study."""
    found: dict[str, Any] = {"results.json": plain(json.loads((out / "results.json").read_text()))}
    for path in sorted(out.glob("cells/*/*")):
        name = f"{path.parent.name}/{path.name}"
        found[name] = plain(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """What would change if a finished cell were computed again, inode and time; latencies are, for all or none."""
    results = [path for path in out.glob("cells/*/result.json") if "-latency-" not in path.parent.name]
    stats = {path.parent.name: path.stat() for path in results}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "study.json").write_text(json.dumps(STUDY))
        calm = Run(root / "study.json", root / "calm", 1)
        calm.end()
        length = time.perf_counter() - calm.begin
        wanted = contents(root / "calm")
        print(f"undisturbed: {len(marks(root / 'calm'))} cells in {length:.1f} s", flush=True)

        rows: list[tuple[int, int, int, int, int]] = []
        kills, study = 0, 0
        while kills < options.kills:
            study += 1
            out, workers = root / f"study{study}", 1 + study % 2
            there: dict[str, tuple[int, int]] = {}
            mine = again = resumed = 0
            done = False
            while not done:
                moment = draw.uniform(0, length / 3) if kills < options.kills else None
                drafts = {path.name for path in out.glob("drafts/*") if (path / "checkpoint.pt").exists()}
                killed = Run(root / "study.json", out, workers).end(moment)
                now = marks(out)
                again += sum(now.get(key) != mark for key, mark in there.items())
                resumed += len(drafts & set(now))
                there, done = now, not killed
                kills, mine = kills + killed, mine + killed
                print(f"study {study}: kill {kills}, {len(there)} cells there" if killed else "done", flush=True)
            found = contents(out)
            different = sum(found.get(name) != value for name, value in wanted.items()) + len(found.keys() - wanted)
            lost = len(marks(root / "calm").keys() - there.keys()) + len(list(out.glob("drafts/*")))
            if mine or lost + again + different:  # a study that ended before its moment says nothing
                rows.append((workers, mine, resumed, lost + again, different))
    write(rows, len(wanted), length)


def write(rows: list[tuple[int, int, int, int, int]], files: int, length: float) -> None:
    kills = sum(row[1] for row in rows)
    story = (
        f"A study of digits that takes {length:.0f} s got SIGKILL at {kills} random moments and was started again each "
        "time (`benchmarks/kills.py`). *Resumed*: cells whose training went on from the checkpoint that the killed "
        "process had left. *Lost or run again*: cells that were missing in the end, or finished before a kill and "
        f"computed once more. *Different*: of {files} files (results, weights, shapes, histories), those that are not "
        "what an undisturbed run wrote, timings left out; weights are compared to the bit."
    )
    lines = [
        "# Killed at random moments",
        "",
        textwrap.fill(story, 120),
        "",
        "| workers | kills | resumed | lost or run again | different |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
        f"Python {platform.python_version()} on {os.cpu_count()} processors.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
