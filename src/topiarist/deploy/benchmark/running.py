"""Runs a bench: networks on runtimes, all those of one setting interleaved."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from topiarist.deploy.benchmark.memory import Meter, meter
from topiarist.deploy.benchmark.subjects import Subject
from topiarist.deploy.benchmark.values import Bench, Network, Reading, Setting, readings_of
from topiarist.deploy.prices import machine
from topiarist.deploy.targets import make_target
from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph import Inputs, batch_of, check_plain
from topiarist.measure import OnStep, Rounds, interleaved, mode

ROUNDS = Rounds(count=200, seconds=10.0)
"""Of each setting."""


def bench(
    networks: Mapping[str, nn.Module | str | Path],
    example_inputs: Inputs,
    targets: Sequence[str] = ("torch",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    *,
    rounds: Rounds = ROUNDS,
    macs: Mapping[str, int | None] | None = None,
    memory: bool = True,
    progress: OnStep | None = None,
) -> Bench:
    """Measures how long networks take on runtimes, and what they save of the first one's time.

    For each target, number of threads and batch, all networks are prepared, and then run in turns: each once in a
    round, in an order that changes from round to round. Latencies are medians over the rounds, and speed-ups medians
    of each round's ratio; intervals hold the true median with 95 % confidence (see `topiarist.measure.Median`). A
    network that a target cannot take is a reading with the reason, and the rest goes on. Ctrl-C returns what is
    measured so far, marked as interrupted.

    Args:
        networks: name → a module, or the path of an ONNX file. The first one is what the others are compared with.
        example_inputs: what all of them are called with; its batch is changed as asked.
        targets: names of runtimes (`topiarist.deploy.target_names`).
        threads: of the CPU.
        batches: examples of one run.
        rounds: how many, and for how long, in each setting.
        macs: name → MACs of one example, where they are known better than by tracing: with zero weights left out.
        memory: whether peak memory is measured too, in processes of its own.
        progress: called with what is measured, how many steps are done, and of how many.

    Raises:
        TopiaristError: there is no network or no such target, a number makes no sense, a package is missing, a file is
            no ONNX file, or a network does not take these inputs.
    """
    settings = _settings(targets, threads, batches)
    if not isinstance(networks, Mapping) or not networks:
        raise TopiaristError("there is no network to measure: give at least one, {name: model}")
    check_plain(example_inputs, "the example input is")
    subjects = [Subject.of(name, network, example_inputs) for name, network in networks.items()]
    known = macs or {}
    described = [Network(s.name, known[s.name] if s.name in known else s.macs(example_inputs)) for s in subjects]
    silent: OnStep = lambda what, done, total: None  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="topiarist-") as folder, meter(memory) as memories:
        work = _Work(described, subjects, example_inputs, rounds, progress or silent, Path(folder), memories)
        work.run(settings)
    return Bench(tuple(described), tuple(work.readings), work.interrupted, _environment(targets))


def _settings(targets: Sequence[str], threads: Sequence[int], batches: Sequence[int]) -> list[Setting]:
    """Returns all settings; raises for what cannot be before anything is measured."""
    for name, values in (("targets", targets), ("threads", threads), ("batches", batches)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise TopiaristError(f"{name} must be a list with at least one entry, but got {shown(values)}")
    for batch in batches:
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise TopiaristError(f"a batch must be a whole number of at least 1, but got {shown(batch)}")
    for target in targets:
        for count in threads:
            make_target(target, count).imported()
    settings = (Setting(target, count, batch) for target in targets for count in threads for batch in batches)
    return list(dict.fromkeys(settings))


@dataclass
class _Work:
    """What is measured, and what has been."""

    networks: Sequence[Network]
    subjects: Sequence[Subject]
    inputs: Inputs
    rounds: Rounds
    progress: OnStep
    folder: Path
    meter: Meter
    readings: list[Reading] = field(default_factory=list)
    memories: dict[Path, int | None] = field(default_factory=dict)
    interrupted: bool = False

    def run(self, settings: Sequence[Setting]) -> None:
        """Measures setting by setting, until it is interrupted."""
        total = len(settings) * self.rounds.count
        for number, setting in enumerate(settings):
            try:
                self._measure(setting, number * self.rounds.count, total)
            except KeyboardInterrupt:  # while networks were being prepared
                self.interrupted = True
            if self.interrupted:
                return

    def _measure(self, setting: Setting, done: int, total: int) -> None:
        """Measures one setting; an interrupt leaves the rounds that are complete."""
        self.progress(f"preparing {setting}", done, total)
        modules = [subject.network for subject in self.subjects if isinstance(subject.network, nn.Module)]
        times: list[dict[str, float]] = []
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(mode(module, training=False))
            runs, others = self._prepared(setting)
            try:
                for seconds in interleaved(runs, self.rounds) if runs else ():
                    times.append(seconds)
                    self.progress(str(setting), done + len(times), total)
            except KeyboardInterrupt:
                self.interrupted = True
        if times or not self.interrupted:
            self.readings += readings_of(self.networks, setting, times, others)

    def _prepared(self, setting: Setting) -> tuple[dict[str, Callable[[], object]], dict[str, dict[str, Any]]]:
        """Returns name → what runs a network once, where the target takes it; and what else its reading says."""
        target, inputs = make_target(setting.target, setting.threads), batch_of(self.inputs, setting.batch)
        runs: dict[str, Callable[[], object]] = {}
        others: dict[str, dict[str, Any]] = {}
        for number, subject in enumerate(self.subjects):
            here = self.folder / f"{number}-{setting.target}-{setting.batch}"
            try:
                session, size = subject.session(target, inputs, here)
                run = session.bind(inputs)
                run()
            except Exception as error:  # runtimes have exceptions of their own
                reason = str(error) if isinstance(error, TopiaristError) else one_line(error)
                others[subject.name] = {"reason": reason}
                continue
            if here not in self.memories:  # with the first number of threads
                network = subject.file(target, inputs, here) or subject.network
                self.memories[here] = self.meter.peak(network, target, inputs, here / "memory")
            runs[subject.name] = run
            others[subject.name] = {"bytes": size, "memory": self.memories[here]}
        return runs, others


def _environment(targets: Sequence[str]) -> dict[str, str]:
    versions = {name: make_target(name).version for name in targets}
    here = {"machine": machine(), "system": platform.system(), "python": platform.python_version()}
    return {"torch": torch.__version__, **versions, **here}
