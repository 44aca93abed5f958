"""Threads that prune, measure and run networks at the same time: each gets what it gets alone, settings stay."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from corners import corners, equal, net, state
from networks import Net, literal, qkv_parts, shaken, tokens
from topiarist import Budget, check, cut, latency, prune, trace
from topiarist.graph import fast_path_off

THREADS = 4


def at_once(work):
    """What `work` returns in each thread, all of which begin together; their errors are raised here."""
    begin = Barrier(THREADS)

    def begun(thread):
        begin.wait()
        return work(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begun, range(THREADS)))


def encoder(seed):
    torch.manual_seed(seed)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 1).eval()


def corrected():
    torch.manual_seed(0)
    model, x = shaken(nn.Sequential(*(Net(literal, **qkv_parts()) for _ in range(3)))), tokens(1)
    graph = check(model, trace(model, x), tokens(2, 7))
    return cut(model, graph, {group.name: torch.arange(group.units) % 2 == 0 for group in graph.groups})


@pytest.mark.parametrize("enabled", [True, False])
def test_pruning_in_threads_is_pruning_alone(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        models = [encoder(seed) for seed in range(THREADS)]

        def work(thread):
            return [prune(models[thread], tokens(1), "l1", Budget(ratio=0.5)) for _ in range(2)]

        for seed, results in enumerate(at_once(work)):
            alone = prune(encoder(seed), tokens(1), "l1", Budget(ratio=0.5))
            for result in results:
                assert result.proof == alone.proof
                assert equal(state(result.model), state(alone.model))
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_last_one_out_restores():
    entered, left = Barrier(THREADS), Barrier(THREADS)
    before = torch.backends.mha.get_fastpath_enabled()

    def work(thread):
        with fast_path_off():
            entered.wait()
            off = not torch.backends.mha.get_fastpath_enabled()
        left.wait()
        return off, torch.backends.mha.get_fastpath_enabled()

    assert at_once(work) == [(True, before)] * THREADS


def test_measuring_in_threads_is_measuring_alone():
    data, models, threads = corners(), [net(seed) for seed in range(THREADS)], torch.get_num_threads()

    def pruned(thread):
        return prune(models[thread], data.example(), "lasso", Budget(ratio=0.5), data)

    def work(thread):
        result = pruned(thread)
        latency(result.model, data.example(), repeats=2, warmup=1)
        return result

    alone = [pruned(thread) for thread in range(THREADS)]
    filters = list(warnings.filters)
    for result, expected in zip(at_once(work), alone, strict=True):
        assert equal(state(result.model), state(expected.model))
    assert list(warnings.filters) == filters
    assert torch.get_num_threads() == threads


def test_one_pruned_network_runs_in_many_threads():
    model, inputs = corrected(), [tokens(2, 5 + k, seed=k) for k in range(THREADS)]

    def work(thread):
        with torch.no_grad():
            return [model(inputs[thread]) for _ in range(30)]

    for x, outputs in zip(inputs, at_once(work), strict=True):
        with torch.no_grad():
            assert all(torch.equal(out, model(x)) for out in outputs)
