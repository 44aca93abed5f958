"""Peak memory of a network at a runtime, measured in processes of its own.

A process is started once; it imports what it needs and forks for each network. A fork begins with the memory of the
imports alone, and its peak is the operating system's account of it, so what a runtime takes outside torch counts too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from topiarist.deploy.target import Target
from topiarist.graph import Inputs

MODULE = "topiarist.deploy.benchmark.child"


class Meter:
    """Measures in the process that `meter` started."""

    def __init__(self, process: subprocess.Popen[str] | None) -> None:
        self.process = process

    def peak(self, network: nn.Module | Path, target: Target, inputs: Inputs, folder: Path) -> int | None:
        """Returns the bytes by which the peak memory grows from before the network is loaded to after a few runs.

        ``None`` where the system has no such account, the module cannot be pickled, or the process died.
        """
        if self.process is None or self.process.poll() is not None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        stored, given = folder / "network.pickle", folder / "inputs.pickle"
        try:
            torch.save(inputs, given)
            if isinstance(network, nn.Module):
                torch.save(network, stored)
        except Exception:  # pickling asks every object how it is pickled
            return None
        file = str(stored if isinstance(network, nn.Module) else network)
        job = {"target": target.name, "threads": target.threads, "network": file, "inputs": str(given)}
        return self._ask(job)

    def _ask(self, job: dict[str, object]) -> int | None:
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            return None
        return int(answer) if answer.strip().isdigit() else None


@contextmanager
def meter(wanted: bool) -> Iterator[Meter]:
    """Starts the process, and ends it afterwards; on systems without fork it measures nothing."""
    if not wanted or not hasattr(os, "fork"):
        yield Meter(None)
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-m", MODULE],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the process that measures
    ) as process:
        try:
            yield Meter(process)
        finally:
            process.kill()
