"""The proof: it passes what is right, catches what is wrong, and trial cuts pin what cannot be proved."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import topiarist
from networks import CASES, Net, conv, distance, images, line, random_keep, shaken, tokens
from topiarist import Budget, TopiaristError, prove, trace
from topiarist.models import load_model
from topiarist.surgery import proof as proof_module

X = images(2)


def traced(name="chain"):
    case = CASES[name]
    model = case.model()
    return model, trace(model, case.inputs), case.inputs


def test_a_right_cut_is_proved():
    model, graph, x = traced()
    proof = prove(model, graph, random_keep(graph, 0), x)
    assert proof.ok
    assert proof.reason == ""
    assert proof.max_rel_diff <= 1e-10
    assert proof.change > 0.01


def test_a_full_keep_is_proved_and_changes_nothing():
    model, graph, x = traced()
    proof = prove(model, graph, {}, x)
    assert (proof.ok, proof.max_rel_diff, proof.change) == (True, 0.0, 0.0)


@pytest.mark.parametrize(("tensor", "axis"), [("3.weight", 1), ("0.weight", 0), ("1.running_mean", 0)])
def test_slices_that_name_the_wrong_places_are_caught(tensor, axis):
    """The mask goes by the slices, the cut by the solved labels: one wrong slice, and they differ."""
    model, graph, x = traced()
    group = graph["0"]
    wrong = tuple(
        replace(part, positions=part.positions.roll(1, 0)) if (part.tensor, part.axis) == (tensor, axis) else part
        for part in group.slices
    )
    graph = replace(graph, groups=(replace(group, slices=wrong), *graph.groups[1:]))
    proof = prove(model, graph, {"0": torch.tensor([1, 0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)}, x)
    assert not proof.ok
    assert proof.max_rel_diff > 1e-3
    assert "differ" in proof.reason


def test_missing_slices_are_caught():
    model, graph, x = traced()
    group = graph["0"]
    graph = replace(graph, groups=(replace(group, slices=group.by_role("statistic")), *graph.groups[1:]))
    assert "differ" in prove(model, graph, {"0": torch.arange(8) != 1}, x).reason


def test_a_blind_proof_is_none():
    model, graph, x = traced()
    with torch.no_grad():
        model[8].weight.zero_()
    proof = prove(model, graph, random_keep(graph, 0), x)
    assert not proof.ok
    assert proof.change == 0
    assert "blind" in proof.reason


def test_outputs_that_are_not_finite_prove_nothing():
    model, graph, x = traced()
    for bad in (torch.nan, torch.inf):
        proof = prove(model, graph, random_keep(graph, 0), torch.full_like(x, bad))
        assert not proof.ok
        assert "not finite" in proof.reason
        assert not proof.max_rel_diff <= 1e-10


def test_dead_places_that_become_nan_prove_nothing():
    """0/0 where both are dead: the mask's output is NaN, which must not count as agreement."""
    model = shaken(Net(lambda n, x: n.b(n.a(x) / n.c(x)), a=conv(3, 8), b=conv(8, 4), c=conv(3, 8)))
    graph = trace(model, X)
    keep = {group.name: torch.arange(group.units) < 3 for group in graph.groups}
    proof = prove(model, graph, keep, X)
    assert proof.ok == (proof.max_rel_diff <= 1e-10)
    graph = topiarist.check(model, graph, X)
    keep = {group.name: torch.arange(group.units) < 3 for group in graph.groups}
    assert prove(model, graph, keep, X).max_rel_diff <= 1e-10


@pytest.mark.parametrize("inputs", [images(2, channels=5), "text", None, (X, X)])
def test_inputs_that_the_model_refuses(inputs):
    model, graph, _ = traced()
    with pytest.raises(TopiaristError, match="the model fails on the example input"):
        prove(model, graph, random_keep(graph, 0), inputs)


def test_the_proof_is_in_double_precision():
    """In single precision the difference of two orders of summation is far above the tolerance."""
    case = CASES["encoder layer"]
    model = case.model().half()
    graph = trace(model.float(), case.inputs)
    assert prove(model, graph, random_keep(graph, 1), case.inputs).max_rel_diff <= 1e-10
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# individual weights


def test_pruned_weights_are_zero_and_all_others_unchanged():
    model, graph, x = traced()
    proof = prove(model, graph.weights(), random_keep(graph.weights(), 0), x)
    assert (proof.ok, proof.reason, proof.max_rel_diff) == (True, "", 0.0)
    assert proof.change > 0.01
    assert proof.checked == "the pruned weights are zero, all others unchanged"


def test_weights_that_were_zero_before_are_no_blind_proof():
    """Nothing is compared on inputs there, so a mask without an effect is right as well."""
    model, graph, x = traced()
    with torch.no_grad():
        model[0].weight.view(-1)[:5] = 0
    kept = torch.arange(model[0].weight.numel()) >= 5
    proof = prove(model, graph.weights(), {"0.weight": kept}, x)
    assert (proof.ok, proof.change) == (True, 0.0)


def test_weights_that_the_cut_leaves_or_changes_are_caught(monkeypatch):
    model, graph, x = traced()
    keep = {"0.weight": torch.arange(model[0].weight.numel()) >= 5}
    for row, reason in ((0, "pruned weights of 0.weight are not zero"), (7, "0.weight differs where nothing was")):
        wrong = topiarist.cut(model, graph.weights(), keep)
        with torch.no_grad():
            wrong[0].weight[row, 0, 0, 0] += 1e-3
        monkeypatch.setattr("topiarist.surgery.proof.cut", lambda *_, wrong=wrong: wrong)
        proof = prove(model, graph.weights(), keep, x)
        assert not proof.ok
        assert proof.max_rel_diff == float("inf")
        assert reason in proof.reason


def test_weights_of_a_network_whose_outputs_are_not_finite_prove_nothing():
    model, graph, x = traced()
    proof = prove(model, graph.weights(), random_keep(graph.weights(), 0), torch.full_like(x, torch.nan))
    assert not proof.ok
    assert "not finite" in proof.reason


# trial cuts


def checked(x):
    assert x.shape[1] == 8, "eight channels"
    return x


def tried(program, **parts):
    inner = Net(program, a=conv(3, 8), b=conv(8, 5, 1), **parts)
    model = shaken(Net(lambda n, x: n.last(n.after(n.inner(n.before(x)))), inner=inner, before=conv(3, 3),
                       after=conv(5, 6), last=conv(6, 4)))  # fmt: skip
    return model, topiarist.check(model, trace(model, X), X)


PROGRAMS = {
    "branch": lambda n, x: n.b(n.a(x) * 2 if n.a(x).shape[1] > 4 else n.a(x)),
    "name": lambda n, x: n.b(getattr(n, f"n{n.a(x).shape[1]}")(n.a(x))),
    "number": lambda n, x: n.b(n.a(x) + torch.tensor([float(str(n.a(x).shape[1]))], dtype=x.dtype)),
    "assertion": lambda n, x: n.b(n.checked(n.a(x))),
    "table": lambda n, x: n.b(n.a(x)) * {8: 1.0, 7: 2.0}[n.a(x).shape[1]],
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.by_day(3)
def test_trial_cuts_pin_what_cannot_be_proved_and_keep_the_rest(name):
    model, graph = tried(PROGRAMS[name], n8=nn.ReLU(), checked=checked)
    names = {group.name for group in graph.groups}
    assert "after" in names
    assert "inner.a" not in names
    reason = next(p.reason for p in graph.pinned if (p.tensor, p.axis) == ("inner.a.weight", 0))
    assert "inner" in reason
    for seed in range(4):
        assert prove(model, graph, random_keep(graph, seed), X).max_rel_diff <= 1e-10


def test_trial_cuts_of_what_is_right_change_nothing():
    for name in ("channel shuffle", "attention", "encoder layer", "literal attention"):
        model, graph, x = traced(name)
        assert {g.name: g.units for g in topiarist.check(model, graph, x).groups} == dict(CASES[name].groups)


def test_zero_initialised_scales_do_not_blind_trial_cuts():
    model = Net(
        lambda n, x: x + n.gain * n.b(n.a(x) * (2 if n.a(x).shape[-1] > 4 else 1)),
        a=nn.Linear(12, 8), b=nn.Linear(8, 12), gain=nn.Parameter(torch.zeros(12)),
    ).eval()  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, tokens(2))
    graph = topiarist.check(model, graph, tokens(2))
    assert [group.name for group in graph.groups] == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_graph_of_one_network_does_not_prove_another():
    _, graph, x = traced("grouped")
    other = shaken(line(conv(3, 12), conv(12, 18, groups=2), conv(18, 4))())
    with pytest.raises(TopiaristError, match="traced"):
        prove(other, graph, {"1": torch.arange(6) < 3, "0:rows": torch.arange(3) < 2}, x)


# further paths


class OnlyAsLarge(nn.Module):
    """Takes no batch but its own: a path of the proof's that a network does not take is left out."""

    def forward(self, x):
        return x.view(2, 3, 4).flatten(1)


def test_a_path_that_the_network_does_not_take_is_left_out():
    model = nn.Sequential(nn.Linear(6, 12), OnlyAsLarge(), nn.Linear(12, 3)).eval()
    graph = trace(model, x := torch.randn(2, 6))
    proof = prove(model, graph, graph.full(), x)
    assert proof.ok
    assert proof.paths == ("the example input",)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :3], lambda x: x * torch.nan], ids=["fails", "is not finite"])
def test_a_path_on_which_the_mask_alone_goes_wrong_is_no_proof(monkeypatch, wrong):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    graph = trace(model, x := torch.randn(2, 6))
    right = proof_module.mask

    def broken(*args):
        masked = right(*args)
        masked.register_forward_pre_hook(lambda _, given: wrong(given[0]) if len(given[0]) == 4 else None)
        return masked

    monkeypatch.setattr(proof_module, "mask", broken)
    proof = prove(model, graph, {"0": torch.arange(12) < 6}, x)
    assert not proof.ok
    assert proof.max_rel_diff == math.inf
    assert proof.failed == "twice the batch"


def test_tracing_and_proving_draw_no_random_numbers():
    model = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.RReLU(), nn.Linear(12, 3))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    graph = trace(model, x := torch.ones(2, 6))
    prove(model, graph, {"0": torch.arange(12) < 6}, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_training_draws_from_numpy_and_python_are_the_same_for_both_networks():
    class Masked(nn.Module):
        """Hides some positions in training, as SpecAugment does."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            if self.training:
                hidden = hidden * float(np.random.rand()) * (1 + random.random())  # noqa: NPY002
            return self.last(hidden)

    model, x = Masked(), torch.randn(2, 6)
    done = topiarist.prune(model, x, "l1", Budget(ratio=0.5))
    assert "training mode" in done.proof.paths
    assert done.model.first.out_features == 4
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert prove(model, done.graph, done.keep, x).ok
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert random.getstate() == before[1]


def test_slopes_that_are_drawn_in_training_are_the_same_for_both_networks():
    done = topiarist.prune(nn.Sequential(nn.Linear(6, 8), nn.RReLU(), nn.Linear(8, 3)), torch.randn(2, 6), "l1", 0.5)
    assert "training mode" in done.proof.paths
    assert done.model[0].out_features == 4


@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
@pytest.mark.nightly
def test_batch_norms_over_two_numbers_each_do_not_refute_a_right_cut():
    """With 1x1 maps and two images rounding grows to 1e-6 in training mode."""
    torch.manual_seed(5)
    model, x = load_model("torchvision:mobilenet_v2"), torch.randn(1, 3, 32, 32)
    assert "training mode" in topiarist.prune(model, x, "l1", Budget(macs=0.5)).proof.paths


class OnlySingle(nn.Module):
    """Experts whose grouped product takes no float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(16, 3)
        self.experts = nn.Parameter(torch.randn(2, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([x.shape[0] // 2, x.shape[0]], dtype=torch.int32)
        return self.last(torch.ops.aten._grouped_mm(self.first(x), self.experts, ends).relu())


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_grouped_mm"), reason="this version of torch has no grouped product")
def test_a_network_that_does_not_run_in_float64_is_proved_in_float32_and_says_so():
    torch.manual_seed(0)
    model, x = OnlySingle().eval(), torch.randn(4, 6)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model).double()(x.double())
    done = topiarist.prune(model, x, "l1", Budget(ratio=0.5))
    assert {name: tuple(p.shape) for name, p in done.model.named_parameters() if p.ndim > 1} == {
        "first.weight": (4, 6), "experts": (2, 4, 8), "last.weight": (3, 8)
    }  # fmt: skip
    assert str(done.proof.precision) == "float32"
    assert done.proof.max_rel_diff <= 1e-4
    assert "in float32" in str(done)
    tied = replace(done.graph, groups=done.graph.groups)
    other = {name: kept.flip(0) for name, kept in done.keep.items()}
    assert prove(model, tied, other, x).ok
    assert topiarist.check(model, done.graph, x).groups == done.graph.groups


def test_what_a_network_casts_to_float32_is_proved_in_float64():
    def run(net, x):
        y = net.a(x)
        alike = torch.zeros(len(x), 5, 5).index_add(0, torch.arange(len(x)), y.float() @ y.float().mT)
        return net.b(alike.mul(0.01).tanh().to(y.dtype) @ y)

    torch.manual_seed(0)
    model = shaken(Net(run, a=nn.Linear(12, 300), b=nn.Linear(300, 3))).double()
    x = tokens(4).double()
    done = topiarist.prune(model, x, "l1", Budget(ratio=0.5))
    with torch.no_grad():
        masked = topiarist.mask(model, done.graph, done.keep)
        assert 1e-10 < distance(done.model(x), masked(x)) < 1e-4  # what float32 rounds
    assert done.proof.ok
    assert done.proof.max_rel_diff <= 1e-10
    assert "lower precision" in done.proof.checked


def test_numbers_that_code_makes_in_float32_meet_what_it_casts():
    def run(net, x):
        y = net.a(x)
        weights = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.05])
        return net.b(torch.einsum("bnc,n->bc", y.float(), weights).to(y.dtype))

    torch.manual_seed(0)
    model = shaken(Net(run, a=nn.Linear(12, 300), b=nn.Linear(300, 3))).double()
    done = topiarist.prune(model, tokens(4).double(), "l1", Budget(ratio=0.5))
    assert done.proof.ok
    assert done.model.a.out_features == 150


@pytest.mark.parametrize("noise", [
    lambda x: x * (torch.rand_like(x) > 0.2), lambda x: x * torch.empty_like(x).bernoulli_(0.8) / 0.8,
    lambda x: x * torch.randn_like(x).exp(),
])  # fmt: skip
def test_noise_on_every_channel_in_training_does_not_refute_a_cut(noise):
    def run(net, x):
        y = net.a(x)
        return net.b(noise(y) if net.training else y)

    model = shaken(Net(run, a=nn.Linear(12, 8), b=nn.Linear(8, 3)))
    done = topiarist.prune(model, tokens(4), "l1", Budget(ratio=0.5))
    assert done.proof.ok
    assert done.model.a.out_features == 4
    assert "training mode" in done.proof.paths
