"""The process that `topiarist.deploy.benchmark.memory` starts: it forks for each network that it is asked about."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topiarist.deploy.targets import make_target
from topiarist.measure import mode

RUNS = 3
LIMIT = 300
"""Seconds after which a network is given up."""


def main() -> None:
    """Answers each line on stdin, a job as JSON, by a line on stdout: bytes, or a word where it failed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no answer
    for line in sys.stdin:
        print(_in_a_fork(json.loads(line)), file=answers, flush=True)


def _in_a_fork(job: dict[str, Any]) -> str:
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return answer or "died"
    signal.alarm(LIMIT)
    try:
        os.write(write, str(_peak(job)).encode())
    finally:
        os._exit(0)


def _peak(job: dict[str, Any]) -> int:
    """Loads the network, runs it, and returns by how much the peak memory grew."""
    torch.set_num_threads(job["threads"])
    target = make_target(job["target"], job["threads"])
    target.imported()
    inputs = torch.load(job["inputs"], weights_only=False)  # written by the process that asks
    nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8))  # what torch sets up once is of no network
    before, file = _highest(), Path(job["network"])
    if file.suffix == ".pickle":
        model: nn.Module = torch.load(file, weights_only=False)
        with mode(model, training=False):
            run = target.prepare(model, inputs).bind(inputs)
            _repeat(run)
    else:
        _repeat(target.load(file).bind(inputs))
    return max(0, _highest() - before)


def _repeat(run: Any) -> None:
    for _ in range(RUNS):
        run()


def _highest() -> int:
    """Returns the largest resident memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
