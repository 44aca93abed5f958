"""Latency: how long one forward pass takes on this machine."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import nn

from topiarist.graph import call_model


def latency(model: nn.Module, example_inputs: Any, *, repeats: int = 20, warmup: int = 3, threads: int = 1) -> float:
    """Median time of one forward pass in milliseconds, in eval mode without gradients, on the model's device.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        repeats: timed runs; the median is returned.
        warmup: runs before them.
        threads: of the CPU; more than one spin, and measure what else the machine does.
    """
    training, before = model.training, torch.get_num_threads()
    torch.set_num_threads(threads)
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    times = []
    try:
        with torch.inference_mode():
            for _ in range(warmup + repeats):
                begin = time.perf_counter()
                call_model(model, example_inputs)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
        model.train(training)
    return 1000 * median(times[warmup:])
