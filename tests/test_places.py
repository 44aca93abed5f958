"""Corrections belong to places in the code: helpers of all kinds are corrected, and other branches are not."""

import copy
import functools
import importlib.util
import inspect
import json
import math
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Architecture, Budget, TopiaristError, cut, mask, prune, trace
from topiarist.architecture.encoding import digest

X = torch.randn(2, 5, 6)


def attended(net, q, k, v):
    return net.out(((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Attention(nn.Module):
    """Its scale comes from a shape; how it is computed is left to those that derive from it."""

    def __init__(self, width=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def parts(self, x):
        return self.q(x), self.k(x), self.v(x)


class ByFunction(Attention):
    def forward(self, x):
        return attended(self, *self.parts(x))


class ByMethod(Attention):
    def scaled(self, q, *, power=-0.5):
        return q * q.size(-1) ** power

    def forward(self, x):
        q, k, v = self.parts(x)
        return self.out((self.scaled(q) @ k.mT).softmax(-1) @ v)


class ByPrivateMethod(Attention):
    def __scaled(self, q):
        return q / math.sqrt(q.shape[-1])

    def forward(self, x):
        q, k, v = self.parts(x)
        return self.out((self.__scaled(q) @ k.mT).softmax(-1) @ v)


class ByLambda(Attention):
    def forward(self, x):
        q, k, v = self.parts(x)
        scaled = lambda y: y * y.shape[-1] ** -0.25  # noqa: E731
        return self.out((scaled(q) @ scaled(k).mT).softmax(-1) @ v)


class ByComprehension(Attention):
    def forward(self, x):
        q, k, v = self.parts(x)
        q, k = [y * y.shape[-1] ** -0.25 for y in (q, k)]
        return self.out((q @ k.mT).softmax(-1) @ v)


class ByClosure(Attention):
    def forward(self, x):
        q, k, v = self.parts(x)

        def scores():
            return q @ k.mT * k.shape[-1] ** -0.5

        return self.out(scores().softmax(-1) @ v)


class ByDecorated(Attention):
    @logged
    def forward(self, x):
        return logged(attended)(self, *self.parts(x))


class BySuper(ByFunction):
    def forward(self, x):
        return super().forward(x) + 1


class ByFused(Attention):
    def forward(self, x):
        return self.out(
            F.scaled_dot_product_attention(
                *self.parts(x),
            )
        )


class Kept:
    """An object that is called, and is no module."""

    def __call__(self, q):
        return q.mul(q.shape[-1] ** -0.5)


class ByObject(Attention):
    kept = Kept()

    def forward(self, x):
        q, k, v = self.parts(x)
        return self.out((self.kept(q) @ k.mT).softmax(-1) @ v)


WAYS = [ByFunction, ByMethod, ByPrivateMethod, ByLambda, ByComprehension, ByClosure]
WAYS += [ByDecorated, BySuper, ByFused, ByObject]


def half(graph):
    return {group.name: torch.arange(group.units) % 2 == 0 for group in graph.groups}


def off(left, right):
    return float(((left - right).abs().max() / right.abs().max()).detach())


@pytest.mark.parametrize("way", WAYS)
def test_a_scale_is_kept_wherever_it_is_computed(way):
    torch.manual_seed(0)
    model, x = way().double(), X.double()
    graph = trace(model, x)
    assert sorted(group.units for group in graph.groups) == [16, 16]
    keep = half(graph)
    smaller, wanted = cut(model, graph, keep), mask(model, graph, keep)(x)
    stored = Architecture.from_json(json.loads(json.dumps(Architecture.of(graph, keep).to_json())))
    for net in (smaller, stored.apply(model), copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert off(net(x), wanted) <= 1e-12
        assert off(torch.jit.trace(net, x)(x), wanted) <= 1e-12
    assert off(model(x), wanted) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_corrected_network_is_pruned_again(way):
    torch.manual_seed(0)
    model, x = way().double(), X.double()
    once = cut(model, graph := trace(model, x), half(graph))
    again = trace(once, x)
    assert sorted(group.units for group in again.groups) == [8, 8]
    keep = half(again)
    twice = cut(once, again, keep)
    assert off(twice(x), mask(once, again, keep)(x)) <= 1e-12
    assert twice.q.weight.shape[0] == 4


def test_the_given_network_and_its_class_stay_as_they_are():
    model = ByFunction()
    code = ByFunction.forward.__code__
    cut(model, graph := trace(model, X), half(graph))
    assert "forward" not in vars(model)
    assert ByFunction.forward.__code__ is code


class Shared(nn.Module):
    """One helper for two layers of other widths: each call is a place of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 12), nn.Linear(6, 8), nn.Linear(20, 3)

    def forward(self, x):
        return self.out(torch.cat([halves(self.a(x), 6), halves(self.b(x), 4)], -1))


def halves(x, width):
    return x.view(x.shape[0], x.shape[1], 2, width).tanh().flatten(2)


def test_a_helper_is_corrected_for_each_call():
    torch.manual_seed(0)
    model, x = Shared().double(), X.double()
    graph = trace(model, x)
    assert sorted(group.units for group in graph.groups) == [2, 2, 4, 6]
    for keep in (half(graph), {group.name: torch.arange(group.units) < 1 for group in graph.groups}):
        assert off(cut(model, graph, keep)(x), mask(model, graph, keep)(x)) <= 1e-12


# source that is gone, or has changed

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).view(len(x), -1, 2, 4){then}.flatten(2))
"""


def loaded(path, then):
    path.write_text(SOURCE.format(then=then))
    spec = importlib.util.spec_from_file_location("network_of_a_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["network_of_a_test"] = module
    spec.loader.exec_module(module)
    return module.Net()


def test_a_file_notices_that_the_source_has_changed(tmp_path):
    before = loaded(tmp_path / "before.py", ".relu()")
    result = prune(before, X, "random", Budget(ratio=0.5))
    topiarist.save(result.model, result.architecture, tmp_path / "pruned")
    same = topiarist.load(lambda: loaded(tmp_path / "same.py", ".relu()"), tmp_path / "pruned")
    assert torch.equal(same(X), result.model(X))
    with pytest.raises(TopiaristError, match=r"not the one that was traced.* prune the network again"):
        topiarist.load(lambda: loaded(tmp_path / "after.py", ".tanh()"), tmp_path / "pruned")


def test_a_file_holds_no_code(tmp_path):
    result = prune(ByFunction(), X, "random", Budget(ratio=0.5))
    topiarist.save(result.model, result.architecture, tmp_path)
    text = (tmp_path / "architecture.json").read_text()
    assert "test_places:attended" in text
    assert "shape" not in text.replace('"shapes"', "")


def test_where_no_source_is_at_hand_the_axis_is_pinned():
    names = {"torch": torch, "nn": nn}
    exec(SOURCE.format(then=""), names)  # as in a shell that keeps no source
    graph = trace(names["Net"](), X)
    assert graph.groups == ()
    with pytest.raises(TopiaristError, match="write the network in a file"):
        prune(names["Net"](), X, "random", Budget(ratio=0.5))


# branches that no example took


class Branches(Attention):
    def forward(self, x, gain=None, scale=None, sizes=False):
        q, k, v = self.parts(x)
        if gain is not None:
            v = v * gain
        if scale is not None:
            q = q * q.shape[-1] ** -0.25
        if sizes:
            v = v.reshape(x.shape[0], -1, 4, 4).flatten(2)
        return self.out(((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v)


TAKEN = {"gain": 2.0}, {"scale": 1}, {"sizes": True}, {"gain": 3.0, "scale": 1, "sizes": True}


def test_a_branch_that_no_example_took_is_right_or_raises():
    torch.manual_seed(0)
    model, x = Branches().double(), X.double()
    result = prune(model, x, "random", Budget(ratio=0.5))
    masked = mask(model, result.graph, result.keep)
    assert off(result.model(x, gain=2.0), masked(x, gain=2.0)) <= 1e-12
    for taken in TAKEN[1:]:
        with pytest.raises(TopiaristError, match=r"no example took the branch at line \d+ of Branches.forward"):
            result.model(x, **taken)
    assert sorted(result.untaken.values()) == [False, True, True]
    assert "no example took" in str(result)
    model(x, **TAKEN[3])  # the given network is as it was


class Signed(Branches):
    def forward(self, x, gain=None):
        return super().forward(x, gain if len(inspect.signature(self.parts).parameters) == 1 else None)


def test_branches_of_pythons_own_library_are_not_listed():
    result = prune(Signed(), X, "random", Budget(ratio=0.5))
    seen = {branch.line.partition(":")[0] for branch in result.graph.solution.record.branches}
    assert {"inspect.py", "test_places.py"} <= seen
    assert {line.partition(":")[0] for line in result.untaken} == {"test_places.py"}
    assert "if the pruned network takes one, it raises an error" in str(result).replace("\n", " ")
    assert "inspect.py" not in str(result)


def test_what_an_example_shows_is_right():
    torch.manual_seed(0)
    model, x = Branches().double(), X.double()
    result = prune(model, x, "random", Budget(ratio=0.5), more_inputs=[{"x": x, **taken} for taken in TAKEN])
    assert result.model.q.weight.shape[0] == 8
    assert result.model.v.weight.shape[0] < 16
    masked = mask(model, result.graph, result.keep)
    for taken in ({}, *TAKEN):
        assert off(result.model(x, **taken), masked(x, **taken)) <= 1e-12
    assert result.untaken == {}
    assert "training mode" in result.proof.paths
    assert "further example 4" in result.proof.paths


def test_a_cut_that_is_wrong_on_a_further_example_is_noticed():
    """The second input takes a branch in which the axis that was free is a fixed one."""

    class Fixed(Attention):
        def forward(self, x, fixed=None):
            v = self.v(x)
            return self.out(v) if fixed is None else self.out(v.cumsum(-1))

    model = Fixed()
    assert [group.units for group in trace(model, X).groups] == [16]
    assert trace(model, X, more_inputs=[{"x": X, "fixed": 1}]).groups == ()


class Pool(nn.Module):
    """A mean by hand, and a gain: numbers that are one over the width by chance."""

    def __init__(self):
        super().__init__()
        self.c, self.o = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, x, gain=0.0625):
        y = self.c(x).relu()
        b, c, h, w = y.shape
        return self.o(y.flatten(2).sum(-1) * (1.0 / (h * w)) * gain)


def test_a_number_that_equals_one_over_a_width_by_chance_stays_free():
    torch.manual_seed(0)
    model, x, larger = Pool().double(), torch.randn(1, 3, 4, 4).double(), torch.randn(2, 3, 8, 8).double()
    result = prune(model, x, "random", Budget(ratio=0.5))
    masked = mask(model, result.graph, result.keep)
    assert off(result.model(larger), masked(larger)) <= 1e-12
    assert off(result.model(x, 3.0), masked(x, 3.0)) <= 1e-12


def test_a_hook_is_no_forward():
    def rescaled(module, args, out):
        return out * out.shape[-1] ** -0.5 if getattr(module, "rescale", False) else out.tanh()

    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].register_forward_hook(rescaled)
    assert prune(model, X, "random", Budget(ratio=0.5)).model[0].weight.shape[0] == 8


# files that nobody vouches for


def damaged(change):
    """The file of a network with corrections of all kinds, in which one of them is another one."""
    torch.manual_seed(0)
    model = Branches()
    value = Architecture.of(graph := trace(model, X), half(graph)).to_json()
    (made,) = value["corrections"].values()
    change(made)
    return model, {**value, "sha256": digest(value)}


def of_kind(made, kind):
    return next(each for each in made if each["kind"] == kind)


DAMAGES = {
    "another kind": lambda made: of_kind(made, "number").update(kind="sizes"),
    "a scale of arithmetic": lambda made: of_kind(made, "number").update(kind="scale", values=[[0, 0.5]]),
    "a scale that is a ratio": lambda made: of_kind(made, "number").update(kind="scale", values=[[0, [1, 2]]]),
    "another side": lambda made: of_kind(made, "number").update(values=[[9, [1, 2]]]),
    "no values": lambda made: of_kind(made, "number").update(values=[]),
    "a guard with values": lambda made: of_kind(made, "guard").update(values=[[0, 0.5]]),
    "a guard of arithmetic": lambda made: of_kind(made, "guard").update(place=of_kind(made, "number")["place"]),
    "twice the same": lambda made: made.append(made[0]),
    "nothing": lambda made: made.clear(),
    "a long way": lambda made: made[0].update(place=made[0]["place"] * 5000),
    "many": lambda made: made.extend(made * 20_000),
    "a large slot": lambda made: of_kind(made, "number").update(values=[[2**39, [1, 2]]]),
    "another function": lambda made: made[0]["place"][0].__setitem__(0, "os:system"),
    "another source": lambda made: made[0]["place"][0].__setitem__(1, "0" * 16),
    "a line that is not there": lambda made: made[0]["place"][0][2].__setitem__(0, 10_000),
    "text for numbers": lambda made: made[0].update(values="12"),
    "not a number": lambda made: of_kind(made, "number").update(values=[[0, float("nan")]]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_corrections_are_refused(damage):
    model, value = damaged(DAMAGES[damage])
    with pytest.raises(TopiaristError):
        Architecture.from_json(value).apply(model)
