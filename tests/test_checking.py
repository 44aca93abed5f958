"""Trial cuts that fail: what cannot be proved stays, what never could be is told at once, and the rest is pruned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import Net, conv, images, shaken, tokens
from topiarist import Budget, TopiaristError, check, prune, trace

X = tokens(2)


def two_branches(first):
    """A branch that leads through `first`, and a plain one beside it."""
    torch.manual_seed(0)

    def program(net, x):
        return net.b(first(net.a(x))) + net.d(torch.relu(net.c(x)))

    return shaken(Net(program, a=nn.Linear(12, 8), b=nn.Linear(8, 3), c=nn.Linear(12, 8), d=nn.Linear(8, 3)))


def copied_bytes(x):
    kind = np.float64 if x.dtype == torch.float64 else np.float32
    return torch.from_numpy(np.frombuffer(bytes(x.contiguous().untyped_storage()), kind).copy().reshape(x.shape))


LEAVING = {
    "numpy": lambda x: torch.from_numpy(np.tanh(x.detach().numpy())),
    "array": lambda x: torch.as_tensor(np.asarray(x.detach())),
    "tolist": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
    "one by one": lambda x: torch.tensor([[[float(v) for v in v] for v in v] for v in x], dtype=x.dtype),
    "bytes": copied_bytes,
}


@pytest.mark.parametrize("way", LEAVING)
@pytest.mark.by_day(2)
def test_what_leaves_torch_stays_and_the_rest_is_pruned(way):
    model = two_branches(LEAVING[way])
    graph = check(model, trace(model, X), X, seconds=20)
    assert [group.name for group in graph.groups] == ["c"]
    result = prune(model, X, "l1", Budget(ratio=0.5))
    assert result.proof.ok
    assert (result.model.a.out_features, result.model.c.out_features) == (8, 4)


@pytest.mark.parametrize("way", ["numpy", "array", "tolist"])
def test_where_values_leave_torch_is_told(way):
    model = two_branches(LEAVING[way])
    reasons = [pin.reason for pin in trace(model, X).pinned if pin.tensor == "a.weight"]
    assert any("leave torch" in reason and "test_checking.py:" in reason for reason in reasons)


RANDOM = {
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "noise": lambda x: x + torch.rand_like(x),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_network_is_told_at_once(kind):
    model = two_branches(RANDOM[kind])
    for door in (lambda: prune(model, X, "l1", Budget(ratio=0.5)), lambda: check(model, trace(model, X), X)):
        with pytest.raises(TopiaristError, match="differ between two runs"):
            door()


def test_a_network_that_draws_the_same_after_a_cut_is_proved_with_the_same_numbers():
    model = two_branches(lambda x: x * torch.randint(2, (1,)).add(1).item() * torch.rand(()).item())
    result = prune(model, X, "l1", Budget(ratio=0.5))
    assert result.proof.ok
    assert (result.model.a.out_features, result.model.c.out_features) == (4, 4)


def test_random_blocks_are_proved_with_the_same_numbers():
    def program(net, x):
        x = net.stem(x)
        for block in net.blocks:
            x = x + F.dropout(block(x), 0.5, training=True)
        return net.head(x.mean((2, 3)))

    blocks = nn.ModuleList(nn.Sequential(conv(4, 4), nn.ReLU()) for _ in range(3))
    model = shaken(Net(program, stem=conv(3, 4), blocks=blocks, head=nn.Linear(4, 3)))
    graph = trace(model, images(2)).blocks()
    assert check(model, graph, images(2)).groups[0].units == 3


def test_a_network_with_a_generator_of_its_own_repeats():
    model = two_branches(
        lambda x: x + torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(0)).to(x)[..., None]
    )
    assert prune(model, X, "l1", Budget(ratio=0.5)).proof.ok
