"""Latency: how long one forward pass takes on this machine, and how networks are timed so that they can be compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from threading import RLock

import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import check_fields
from topiarist.graph import call_model, check_plain
from topiarist.measure.batches import Inputs, device_of, mode

_ALONE = RLock()
"""Held while networks are timed: the number of threads is the process's, and two at a time are slower."""

Runs = Mapping[str, Callable[[], object]]
"""Name → what runs once when it is called."""

Clock = Callable[[], float]
"""Returns the time in seconds, from any beginning."""


@dataclass(frozen=True)
class Rounds:
    """Describes how long is measured: a number of rounds, or until the time is over; each runs every network once.

    Attributes:
        count: rounds, at most.
        seconds: after so long no further round begins; ``None`` for no limit. The first round is always measured.
        warmup: rounds before them, which are not measured.
        seed: of the order in each round.

    Raises:
        TopiaristError: a number is of a wrong type or out of its range.
    """

    count: int = 100
    seconds: float | None = None
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "the rounds")
        for name, least in (("count", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise TopiaristError(f"{name} of the rounds must be at least {least}, but got {getattr(self, name)}")
        if self.seconds is not None and self.seconds <= 0:
            raise TopiaristError(f"seconds of the rounds must be above 0, but got {self.seconds}")


def interleaved(
    runs: Runs,
    rounds: Rounds = Rounds(),
    *,
    clock: Clock = time.perf_counter,
) -> Iterator[dict[str, float]]:
    """Yields name → seconds of one run, round by round.

    All networks run once in each round, in an order that is drawn anew for each. So what else the machine does, its
    temperature and its caches disturb all of them alike, and two times of one round can be compared.

    Args:
        runs: what is timed.
        rounds: how many, and how long.
        clock: by default the most precise one of this machine.
    """
    names, order = list(runs), random.Random(rounds.seed)
    with _ALONE:
        for _ in range(rounds.warmup):
            _one_round(runs, names, order, clock)
        start = clock()
        for number in range(rounds.count):
            if number and rounds.seconds is not None and clock() - start >= rounds.seconds:
                return
            yield _one_round(runs, names, order, clock)


def _one_round(runs: Runs, names: list[str], order: random.Random, clock: Clock) -> dict[str, float]:
    order.shuffle(names)
    seconds = {}
    for name in names:
        begin = clock()
        runs[name]()
        seconds[name] = clock() - begin
    return {name: seconds[name] for name in runs}


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Context in which torch uses so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latency(model: nn.Module, example_inputs: Inputs, *, repeats: int = 20, warmup: int = 3, threads: int = 1) -> float:
    """Returns the median time of one forward pass in milliseconds, in eval mode, on the model's device.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        repeats: timed runs; the median is returned.
        warmup: runs before them.
        threads: of the CPU; more than one spin, and measure what else the machine does.
    """
    return latencies({"": model}, example_inputs, Rounds(repeats, warmup=warmup), threads=threads)[""]


def latencies(
    models: Mapping[str, nn.Module], example_inputs: Inputs, rounds: Rounds, *, threads: int = 1
) -> dict[str, float]:
    """Returns name → the median time of one forward pass in milliseconds, of networks that run interleaved.

    Args:
        models: name → network.
        example_inputs: as of `latency`.
        rounds: how many, and how long.
        threads: of the CPU.

    Raises:
        TopiaristError: the example input is no dense tensor with values.
    """
    check_plain(example_inputs, "the example input is")
    with ExitStack() as stack:
        for context in (_ALONE, threads_set(threads), torch.inference_mode()):
            stack.enter_context(context)
        for model in models.values():
            stack.enter_context(mode(model, training=False))
        runs = {name: _run(model, example_inputs) for name, model in models.items()}
        times = list(interleaved(runs, rounds))
    return {name: 1000 * median(seconds[name] for seconds in times) for name in models}


def _run(model: nn.Module, example_inputs: Inputs) -> Callable[[], object]:
    """Returns what runs a network once; on a GPU it waits until that is done."""
    device = device_of(model)

    def run() -> None:
        call_model(model, example_inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
