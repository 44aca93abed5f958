"""Tensors that few operators take: sparse, quantised, nested or without values. Every door refuses them by name."""

import warnings

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Data, TopiaristError, deploy, measure, surgery
from topiarist.graph import trace

X = torch.rand(4, 1, 8, 8)
MAKERS = {
    "torch.sparse_coo": torch.Tensor.to_sparse,
    "torch.sparse_csr": lambda x: x.flatten(1).to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that some of these are in beta
    ODD = {kind: make(X) for kind, make in MAKERS.items()}
    NESTED = torch.nested.nested_tensor([torch.rand(3), torch.rand(4)])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()


GRAPH = trace(net(), X)
KEEP = {group.name: torch.arange(group.units) > 0 for group in GRAPH.groups}
DOORS = {
    "trace": lambda x, folder: trace(net(), x),
    "another way": lambda x, folder: topiarist.prune(net(), X, "l1", 0.5, more_inputs=[x]),
    "prune": lambda x, folder: topiarist.prune(net(), (x,), "l1", 0.5),
    "prune a traced one": lambda x, folder: topiarist.prune(net(), x, "l1", 0.5, graph=GRAPH),
    "prove": lambda x, folder: surgery.prove(net(), GRAPH, KEEP, {"input": x}),
    "check": lambda x, folder: surgery.check(net(), GRAPH, x),
    "latency": lambda x, folder: measure.latency(net(), x),
    "bench": lambda x, folder: topiarist.bench({"it": net()}, x),
    "export": lambda x, folder: deploy.export(net(), x, folder / "net.onnx"),
    "collect": lambda x, folder: measure.collect(net(), GRAPH, [(x, torch.arange(4))], {"gradients"}),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_names_a_tensor_that_it_cannot_take(door, kind, tmp_path):
    with pytest.raises(TopiaristError, match=kind):
        DOORS[door](ODD[kind], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["torch.sparse_coo", "meta", "float8_e4m3fn"])
@pytest.mark.parametrize("part", ["weight", "buffer"])
def test_so_do_weights_and_buffers(part, kind):
    model = net()
    if part == "weight":
        model[3].weight = nn.Parameter(MAKERS[kind](model[3].weight.detach()))
    else:
        model.register_buffer("extra", ODD[kind])
    for method, budget in (("l1", 0.5), ("magnitude", {"ratio": 0.5})):
        with pytest.raises(TopiaristError, match=kind):
            topiarist.prune(model, X, method, budget)


@pytest.mark.parametrize("odd", [X.to_sparse(), X.to("meta"), X.to_mkldnn(), X.numpy(), None])
def test_data_takes_dense_tensors_alone(odd):
    labels = torch.arange(4)
    with pytest.raises(TopiaristError, match="odd: train_x is"):
        Data.of("odd", odd, labels, X, labels)
    with pytest.raises(TopiaristError, match="odd: test_y is"):
        Data.of("odd", X, labels, X, labels.to_sparse())


def test_nested_tensors_and_no_example_at_all_are_refused():
    with pytest.raises(TopiaristError, match="nested tensor"):
        trace(net(), NESTED)
    with pytest.raises(TopiaristError, match="holds no example"):
        topiarist.bench({"it": net()}, X[:0])
