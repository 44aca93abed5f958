"""Garbage on the command line: every command with its words dropped, doubled, cut and replaced at random.

Defended: each line ends by itself or at an interrupt, with status 0, 1 (cells of a study failed), 2 (bad input) or 130
(interrupted). Status 2 comes with one last sentence on standard error, which cuts long values. Nothing ends in a
traceback.

    python attacks/command_lines.py --count 300 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from random import Random

from topiarist.cli import COMMANDS, main

SECONDS = 3.0
"""After so long a line is interrupted, as by Ctrl-C; after twenty times as long it counts as hanging."""

MODEL, DATA = "zoo:digitsnet?width=0.25", "digits?train=50"
PRUNE = ["prune", MODEL, "--data", DATA, "--method", "l1", "--budget.macs", "0.5", "--train.epochs", "0"]
LINES = {
    "demo": ["demo", "--seeds", "1", "--out", "out"],
    "methods": ["methods", "l1"],
    "inspect": ["inspect", MODEL, "--data", DATA],
    "train": ["train", MODEL, "--data", DATA, "--epochs", "0", "--out", "out"],
    "prune": [*PRUNE, "--epochs", "0", "--out", "out"],
    "export": ["export", MODEL, "--data", DATA, "--out", "model.onnx"],
    "bench": ["bench", MODEL, "--data", DATA, "--rounds", "1", "--no-memory", "--out", "out"],
    "sensitivity": ["sensitivity", MODEL, "--data", DATA, "--weights", "weights.safetensors", "--out", "out"],
    "pattern": ["pattern", "out", "--out", "pattern"],
    "compress": ["compress", "weights.safetensors", "--bits", "4", "--out", "model.tpcf"],
    "decompress": ["decompress", "model.tpcf", "--out", "out"],
    "study": ["study", "study.yaml", "--out", "study"],
    "merge": ["merge", "study", "other", "--out", "both"],
    "report": ["report", "study"],
}
"""Command → a line that it takes, to begin with."""

LONG = "x" * 5000
"""A value of which a sentence shows the beginning at most."""

SHORT = r"""
- -- --- = --= --. * ? é×网 $x_{$ %s {} [ \ 0 1 2 -1 0.5 1e-400 1e400 nan inf 1_0 0x10 true null 1,2
: a:b:c 8 0x0x0 3x8x8
l1 lasso slimming magnitude random all paper onnx torch sparse 2:4 cubic auto 1,1,8,8 1,-1
zoo: zoo:digitsnet? zoo:digitsnet?width=nan zoo:digitsnet?width=-1 json:loads no_such:make
digits:0 digits:99999 npz: npz:text folder:. folder:/dev torchvision:None digits?train=-1 digits?x=1
text weights.safetensors no/such text/below . /dev/null /dev/full /proc/self/x study.yaml a.onnx
--help --json --config --method --seed --rewind
"""
WORDS = ["", " ", "{a: b", LONG, "9" * 40, "[1, 2]", *SHORT.split()]
"""What takes the place of a word; nothing that names a place outside of the folder, or takes much memory."""


def flags(command: str) -> list[str]:
    """Returns the options of a command, as its help lists them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([command, "--help"])
    return sorted(set(re.findall(r"--[a-z_]+(?:\.[a-z_]+)*", text.getvalue())) - {"--executor"})


def mutated(words: list[str], options: list[str], draw: Random) -> list[str]:
    """Returns a line with one to four changes."""
    words = list(words)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(words)) if words else 0
        match draw.randrange(6):
            case 0:
                words[place : place + 1] = []
            case 1:
                words[place:place] = words[place : place + 1]
            case 2:
                words[place : place + 1] = [draw.choice(WORDS)]
            case 3:
                words += [draw.choice(options), draw.choice(WORDS)]
            case 4:
                words += [f"{draw.choice(options)}={draw.choice(WORDS)}"]
            case _:
                words[place : place + 1] = [word[: draw.randint(0, len(word))] for word in words[place : place + 1]]
    return words


def outcome(words: list[str]) -> tuple[int, str]:
    """Runs a line; returns its status and what it said on standard error.

    Raises:
        AssertionError: it ended in a traceback, with another status, or without a sentence.
    """
    out, err = io.StringIO(), io.StringIO()
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 5 * SECONDS)  # again, where a library has swallowed the first
    faulthandler.dump_traceback_later(20 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except BaseException as error:
        raise AssertionError(f"{shlex.join(words)}\n{''.join(traceback.format_exception(error))}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    last = err.getvalue().rstrip("\n").rpartition("\n")[2]
    refused = last.startswith("topiarist: ") and last.endswith((".", "?")) and LONG[:200] not in last
    assert "Traceback" not in last, f"{shlex.join(words)}\n{err.getvalue()}"
    assert status in (0, 1, 2, 130), f"{shlex.join(words)} ends with {status}"
    assert refused or status in (0, 1), f"{shlex.join(words)} ends with {status} and says {last[:2000]!r}"
    return status, last


def attack(count: int, seed: int) -> Counter[int]:
    """Runs so many lines in an empty folder; returns how often each status came."""
    draw, statuses, options = Random(seed), Counter[int](), {name: flags(name) for name in COMMANDS}
    before, here = signal.signal(signal.SIGALRM, signal.default_int_handler), Path.cwd()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("text").write_text("no archive")
            Path("study.yaml").write_text(
                f"title: x\nnetwork: {MODEL}\ndata: {DATA}\nmethod: l1\nbudget: {{macs: 0.5}}\n"
            )
            with contextlib.redirect_stdout(io.StringIO()):  # what they import is not to be interrupted
                assert not main(LINES["prune"])
                assert not main(LINES["bench"])
            Path("out/trained.safetensors").rename("weights.safetensors")
            for number in range(count):
                name = list(LINES)[number % len(LINES)]
                status, _ = outcome(mutated(LINES[name], options[name], draw))
                statuses[status] += 1
    finally:
        os.chdir(here)
        signal.signal(signal.SIGALRM, before)
    return statuses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(", ".join(f"{number} lines ended with {status}" for status, number in sorted(attack(**vars(given)).items())))
