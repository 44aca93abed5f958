"""Models in wrappers: what is compiled, parallel or averaged is pruned as the network within, by its own names."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

import topiarist
from corners import QUICK, corners, equal, net, state
from topiarist import (
    Budget,
    TopiaristError,
    attach,
    check,
    collect,
    cut,
    evaluate,
    fit,
    mask,
    prove,
    prune,
    shrink,
    trace,
)
from topiarist.surgery import copied

X = corners().example()


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_within(model):
    model[0] = compiled(model[0])
    return model


WRAPPERS = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled within": compiled_within,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "nested": lambda model: AveragedModel(nn.DataParallel(compiled(model))),
}


@pytest.fixture
def alone(tmp_path):
    """One process that is a whole group."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain(model):
    return type(model) is nn.Sequential and not any("module" in n or "_orig_mod" in n for n in model.state_dict())


def check_pruned(wrapped, reference):
    result = prune(wrapped, X, "l1", Budget(ratio=0.5))
    assert plain(result.model)
    assert result.architecture.to_json() == reference.architecture.to_json()
    assert equal(state(result.model), state(reference.model))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.by_day(4)
def test_a_wrapped_model_is_pruned_as_the_network_within(wrapper, tmp_path):
    reference = prune(net(), X, "l1", Budget(ratio=0.5))
    wrapped = WRAPPERS[wrapper](net())
    before, training = state(wrapped), wrapped.training
    check_pruned(wrapped, reference)
    assert equal(state(wrapped), before)
    assert wrapped.training == training
    topiarist.save(WRAPPERS[wrapper](copied(reference.model)), reference.architecture, tmp_path)
    loaded = topiarist.load(lambda: WRAPPERS[wrapper](net(1)), tmp_path)
    assert plain(loaded)
    assert equal(state(loaded), state(reference.model))
    topiarist.compress.save(wrapped, tmp_path / "one")
    assert equal(topiarist.compress.load(tmp_path / "one"), state(net()))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.by_day(2)
def test_each_step_takes_a_wrapped_model(wrapper):
    data, model = corners(), net()
    wrapped = WRAPPERS[wrapper](net())
    graph = check(wrapped, trace(wrapped, X), X)
    assert graph.shapes == trace(model, X).shapes
    keep = {group.name: torch.arange(group.units) % 2 == 0 for group in graph.groups}
    assert prove(wrapped, graph, keep, X).ok
    for surgery in (cut, mask):
        assert equal(state(surgery(wrapped, graph, keep)), state(surgery(model, graph, keep)))
    batches = list(data.batches("train", 16))
    sums, expected = (collect(m, graph, batches, ("activations",)).sums for m in (wrapped, model))
    assert sums.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(sums[key]), torch.as_tensor(expected[key])) for key in sums)
    assert evaluate(wrapped, data) == evaluate(model, data)
    with torch.no_grad():
        for m in (model, wrapped):
            for parameter in m.parameters():
                parameter[0] = 0
    assert equal(state(shrink(wrapped, X).model), state(shrink(model, X).model))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_trained_in_place(wrapper):
    data, model, wrapped = corners(), net(), WRAPPERS[wrapper](net())
    graph = trace(model, X)
    for m in (model, wrapped):
        history = fit(m, data, QUICK, method="slimming", graph=graph)
        assert history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wrapped.parameters(), strict=True))


def test_a_loop_of_one_s_own_trains_a_wrapped_model():
    wrapped, graph = compiled(net()), trace(net(), X)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.0)
    before = wrapped.get_parameter("_orig_mod.1.weight").clone()
    with attach("slimming", wrapped, optimizer, graph):
        wrapped(X).sum().backward()
        optimizer.step()
    grad = wrapped.get_parameter("_orig_mod.1.weight").grad
    assert torch.equal(before, wrapped.get_parameter("_orig_mod.1.weight"))
    assert grad is not None


def test_values_of_a_wrapped_model_are_rewound_to():
    model = net()
    for wrapper in (compiled, nn.DataParallel, AveragedModel):
        initial = copy.deepcopy(wrapper(net(1)).state_dict())
        request = topiarist.Pruning.of("l1", Budget(ratio=0.5), rewind=True)
        result = prune(model, X, request, initial=initial)
        assert equal(state(result.model), state(cut(net(1), result.graph, result.keep)))


def test_one_process_of_many(alone):
    reference = prune(net(), X, "l1", Budget(ratio=0.5))
    check_pruned(nn.parallel.DistributedDataParallel(net()), reference)


def test_a_sharded_model_is_refused(alone):
    model = net()
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    for door in (lambda: trace(model, X), lambda: prune(model, X, "l1", 0.5), lambda: copied(model)):
        with pytest.raises(TopiaristError, match=r"sharded.*full_state_dict"):
            door()
