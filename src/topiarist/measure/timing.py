"""Latency: how long one forward pass takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from threading import Lock

import torch
from torch import nn

from topiarist.graph import call_model
from topiarist.measure.batches import Inputs, device_of, mode

_ALONE = Lock()
"""Held while a network is timed: the number of threads is the process's, and two at a time are slower."""


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
    device, times = device_of(model), []
    with _ALONE, threads_set(threads), mode(model, training=False), torch.inference_mode():
        for _ in range(warmup + repeats):
            begin = time.perf_counter()
            call_model(model, example_inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
    return 1000 * median(times[warmup:])
