"""SIGKILL at random moments of ``train``, ``prune``, ``compress``, ``study`` and ``demo`` on small networks.

Defended: the same command run again succeeds and gives the result of an undisturbed run, but for timings; weights are
compared to the bit. No temporary file, lock or checkpoint is left.

    python attacks/kills.py --count 20 --seed 0          # so many kills of each command
    python attacks/kills.py --count 2 --commands train prune
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

MODEL, DATA = "zoo:digitsnet?width=0.25", "digits?train=200"
PRUNE = [
    "prune",
    MODEL,
    "--data",
    DATA,
    "--method",
    "l1",
    "--budget.macs",
    "0.5",
    "--train.epochs",
    "2",
    "--epochs",
    "2",
]
STUDY = {
    "title": "Kills",
    "network": MODEL,
    "data": DATA,
    "prunings": [{"method": "l1", "budget": {"macs": 0.5}}],
    "seeds": [0],
    "recipe": {"epochs": 2, "lr": 0.05},
    "finetune": {"epochs": 1, "lr": 0.01, "schedule": "constant"},
    "arms": ["finetune", "scratch_b"],
}
COMMANDS = {
    "train": ["train", MODEL, "--data", DATA, "--epochs", "3", "--out", "out"],
    "prune": [*PRUNE, "--out", "out"],
    "compress": ["compress", "pruned", "--bits", "4", "--model", MODEL, "--data", DATA, "--epochs", "2"],
    "study": ["study", "study.json", "--out", "out"],
    "demo": ["demo", "--seeds", "1", "--workers", "1", "--out", "out"],
}
COMMANDS["compress"] += ["--out", "out/model.tpcf"]
TIMINGS = {"seconds", "processor_seconds", "latency_ms", "latency", "session"}


def run(words: list[str], folder: Path, seconds: float | None = None) -> bool:
    """Runs a command, and kills it after so many seconds; returns whether it was killed.

    Raises:
        AssertionError: it failed by itself.
    """
    command = [sys.executable, "-m", "topiarist", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    assert process.returncode == 0, f"{words[0]} ended with {process.returncode}: {said.decode()[-2000:]}"
    return False


def plain(value: Any) -> Any:
    """Returns results but for timings."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in TIMINGS}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, Any]:
    """Returns every file by its name: JSON but for timings, others as they are, reports as being there."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        known = {".json": lambda path: plain(json.loads(path.read_text())), ".html": str, ".md": str}
        found[str(path.relative_to(out))] = known.get(path.suffix, Path.read_bytes)(path)
    for name in [name for name in found if name.endswith((".html", ".md"))]:
        found[name] = ""
    return found


def attack(count: int, seed: int, commands: list[str]) -> dict[str, int]:
    """Kills each command so many times, and finishes it after each; returns command → how many kills."""
    draw, kills = Random(seed), dict.fromkeys(commands, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.json").write_text(json.dumps(STUDY))
        if "compress" in commands:
            run([*PRUNE, "--out", "pruned"], folder)
        for command in commands:
            begin = time.perf_counter()
            run(COMMANDS[command], folder)
            length, wanted = time.perf_counter() - begin, contents(folder / "out")
            while kills[command] < count:
                shutil.rmtree(folder / "out", ignore_errors=True)
                begin = time.perf_counter()
                if not run(COMMANDS[command], folder, draw.uniform(0.1, 0.95) * length):
                    length = time.perf_counter() - begin  # it ended before: the machine had less to do
                    continue
                kills[command] += 1
                run(COMMANDS[command], folder)
                found = contents(folder / "out")
                different = [each for each in {**wanted, **found} if wanted.get(each) != found.get(each)]
                assert not different, f"{command}: {different} differ from an undisturbed run"
            shutil.rmtree(folder / "out")
    return kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    print(", ".join(f"{command}: {kills} kills" for command, kills in attack(**vars(parser.parse_args())).items()))
