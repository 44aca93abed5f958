"""Standard streams that are closed, full, read by nobody, or that know ASCII only.

Defended: a command's files are complete before anything is printed, and the same as with any other terminal. What
cannot be shown is replaced. The exit status is 0, 141 where the reader has left, or 2 with one sentence where the disk
is full.

    python attacks/terminals.py --count 12 --seed 0
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

WORDS = ["prune", "zoo:digitsnet?width=0.25", "--data", "digits?train=50", "--method", "l1", "--budget.macs", "0.5"]
NONE = ["--train.epochs", "0", "--epochs", "0", "--out"]
FILES = ("architecture.json", "model.safetensors", "result.json", "trained.safetensors")
STREAMS = {"as it is": "", "closed": "&-", "full": "/dev/full", "not read": "not read"}
ENCODINGS = {"UTF-8": {}, "ASCII": {"PYTHONIOENCODING": "ascii"}, "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}}


def run(out: Path, output: str, error: str, encoding: str) -> tuple[int, str]:
    """Prunes with standard output and standard error as they are named; returns the status and what was said."""
    redirected = "".join(
        f" {number}>{STREAMS[name]}"
        for number, name in ((1, output), (2, error))
        if name not in ("as it is", "not read")
    )
    reading, writing = os.pipe()
    os.close(reading)
    ends = {name: writing if name == "not read" else subprocess.PIPE for name in (output, error)}
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@"{redirected}', "sh", sys.executable, "-m", "topiarist", *WORDS, *NONE, str(out)],
        env={**os.environ, **ENCODINGS[encoding]},
        stdout=ends[output],
        stderr=ends[error],
        check=False,
    )
    os.close(writing)
    return done.returncode, (done.stderr or b"").decode()


def attack(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Tries so many terminals, drawn at random; returns them."""
    draw, tried = Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "calm", "as it is", "as it is", "UTF-8")
        wanted = (Path(folder) / "calm" / "model.safetensors").read_bytes()
        for number in range(count):
            case = draw.choice(list(STREAMS)), draw.choice(list(STREAMS)), draw.choice(list(ENCODINGS))
            out = Path(folder) / str(number)
            status, said = run(out, *case)
            assert sorted(file.name for file in out.iterdir()) == list(FILES), (case, said)
            assert (out / "model.safetensors").read_bytes() == wanted, case
            assert status == {"full": 2, "not read": 141}.get(case[0], 0), (case, status, said)
            assert "Traceback" not in said, (case, said)
            if case[:2] == ("full", "as it is"):
                assert said.startswith("topiarist: cannot print the result"), (case, said)
                assert said.count("\n") == 1, (case, said)
            tried.append(case)
    return tried


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    print("\n".join(", ".join(case) for case in attack(**vars(parser.parse_args()))))
