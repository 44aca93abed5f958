"""Outputs that are decided by data: detections, classes, truth values; what hides in them is compared before."""

import pytest
import torch
from torch import nn

import topiarist
from networks import Net, conv, images, line, random_keep, shaken, tokens
from topiarist import Budget, Pruning, TopiaristError, prove, trace

X = images(2)


def boxes(rows):
    """A detector's last steps: the best twenty, with their classes, without those near a better one."""
    scores, places = rows[0].max(-1)[0].topk(20)
    found, kept = rows[0][places], []
    order = scores.argsort(descending=True)
    while len(order):
        kept.append(int(order[0]))
        distance = (found[order] - found[order[0]]).norm(dim=-1)
        order = order[1:][distance[1:] > 1]
    return {"rows": found[kept], "scores": scores[kept], "labels": found[kept].argmax(-1)}


STEPS = {
    "rows above their mean": lambda rows: [row[row[:, 0] > row[:, 0].mean()] for row in rows],
    "rows above zero": lambda rows: [row[row[:, 0] > 0] for row in rows],
    "nothing is found": lambda rows: [row[row[:, 0] > 1e9] for row in rows],
    "classes": lambda rows: rows.argmax(-1),
    "classes and scores": lambda rows: rows.max(-1),
    "truth values": lambda rows: rows > rows.mean(),
    "truth values as numbers": lambda rows: (rows > rows.mean()).to(rows),
    "places": lambda rows: (rows > 0).nonzero(),
    "selected": lambda rows: rows.masked_select(rows > 0),
    "order": lambda rows: rows.argsort(1),
    "best": lambda rows: rows.topk(3, dim=1),
    "steps": lambda rows: (rows * 4).round() / 4,
    "distinct": lambda rows: torch.unique(rows.round(decimals=1)),
    "counted": lambda rows: torch.unique((rows * 3).long(), return_counts=True),
    "boxes": boxes,
}


def detector(step, seed=0):
    torch.manual_seed(seed)
    net = Net(
        lambda n, x: step(n.h(torch.relu(n.d(torch.relu(n.c(x))))).flatten(2).transpose(1, 2)),
        c=conv(3, 16), d=conv(16, 16), h=conv(16, 6, 1),
    )  # fmt: skip
    return shaken(net)


def swapped(monkeypatch, name, axis=0):
    """Makes every cut wrong: two kept units of a tensor have changed places."""
    right = topiarist.cut

    def wrong(*arguments):
        made = right(*arguments)
        with torch.no_grad():
            tensor = made.get_parameter(name)
            order = torch.arange(tensor.shape[axis])
            order[:2] = order[:2].flip(0)
            tensor.copy_(tensor.index_select(axis, order))
        return made

    monkeypatch.setattr("topiarist.surgery.proof.cut", wrong)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.by_day(8)
def test_networks_that_select_by_data_are_pruned_and_wrong_cuts_are_caught(name, monkeypatch):
    model = detector(STEPS[name])
    done = topiarist.prune(model, X, "random", Budget(ratio=0.5))
    assert done.proof.ok
    assert "the steps that select by data" in done.proof.checked
    assert {group.name for group in done.graph.groups} == {"c", "d"}
    small = done.model.get_parameter("c.weight"), done.model.get_parameter("d.weight")
    assert [tuple(weight.shape[:2]) for weight in small] == [(8, 3), (8, 8)]
    swapped(monkeypatch, "d.weight")
    proof = prove(model, done.graph, done.keep, X)
    assert not proof.ok
    assert not proof.max_rel_diff <= 1e-10
    assert "cut and mask differ" in proof.reason


@pytest.mark.parametrize("name", ["classes", "nothing is found", "steps"])
def test_a_small_fault_behind_equal_selections_is_caught(name, monkeypatch):
    model = detector(STEPS[name])
    graph, right = trace(model, X), topiarist.cut

    def wrong(*arguments):
        made = right(*arguments)
        with torch.no_grad():
            made.get_parameter("h.weight").mul_(1 + 1e-8)
        return made

    monkeypatch.setattr("topiarist.surgery.proof.cut", wrong)
    proof = prove(model, graph, random_keep(graph, 0), X)
    assert 1e-9 < proof.max_rel_diff < 1e-7
    assert "in what enters a step that selects by data" in proof.reason


def tied(step):
    """The same scores twice, in two orders of summation: where they differ, it is by rounding."""
    return shaken(Net(
        lambda n, x: step((h := torch.relu(n.a(x))), n.b(h), (h * n.b.weight).sum(-1, keepdim=True)),
        a=nn.Linear(12, 96), b=nn.Linear(96, 1, bias=False),
    ))  # fmt: skip


TIES = {
    "classes": lambda h, y, z: torch.cat([y, z], -1).argmax(-1),
    "rows": lambda h, y, z: y[(y > z)[..., 0]],
    "a number": lambda h, y, z: y * sum(bool(a > b) for a, b in zip(y[0], z[0], strict=True)) + 1,
}


@pytest.mark.parametrize("name", TIES)
def test_where_rounding_decides_both_are_given_the_same_selection(name):
    model, x = tied(TIES[name]), tokens(4)
    graph = trace(model, x)
    proofs = [prove(model, graph, random_keep(graph, seed), x) for seed in range(8)]
    assert all(proof.max_rel_diff <= 1e-10 for proof in proofs), [proof.reason for proof in proofs]
    assert any("rounding decides what is selected" in proof.checked for proof in proofs)


def test_the_step_itself_is_not_taken_on_trust(monkeypatch):
    """A selection is followed only on the same numbers: a network that is cut wrongly makes its own, and is caught."""
    model, x = tied(TIES["rows"]), tokens(4)
    graph = trace(model, x)
    swapped(monkeypatch, "b.weight", axis=1)
    assert not prove(model, graph, random_keep(graph, 0), x).max_rel_diff <= 1e-10


def test_masked_scores_are_compared_where_they_are_finite():
    model = detector(lambda rows: rows.masked_fill(torch.arange(6) > 3, -torch.inf).argmax(-1))
    graph = trace(model, X)
    assert prove(model, graph, random_keep(graph, 0), X).ok


@pytest.mark.parametrize("step", [
    lambda rows: rows.masked_fill((rows / rows.floor().clamp(0, 0)).isnan(), 0) * 0 + rows,
    lambda rows: rows * (rows.softmax(-1).sum(-1, keepdim=True) - 1).abs().lt(1e-6),
    lambda rows: rows * torch.allclose(rows.softmax(-1).sum(-1), rows.new_ones(rows.shape[:-1])),
    lambda rows: rows.clone().round_() + rows.clone().gt_(rows.mean()) + rows,
    lambda rows: rows * torch.zeros_like(rows, dtype=torch.long).copy_(3 * rows),
    lambda rows: torch.complex(rows[..., :3], rows[..., 3:]) * (rows[..., :3] > rows.mean()),
], ids=["NaN inside", "tiny", "close", "in place", "copied to integers", "complex"])  # fmt: skip
def test_right_cuts_are_proved_whatever_is_compared_inside(step):
    model = detector(step)
    graph = trace(model, X)
    for seed in range(3):
        proof = prove(model, graph, random_keep(graph, seed), X)
        assert proof.ok, proof.reason


def test_integers_beside_numbers_are_compared(monkeypatch):
    model = detector(lambda rows: (rows, rows.argmax(-1)))
    graph = trace(model, X)
    assert prove(model, graph, random_keep(graph, 0), X).ok
    right = topiarist.cut

    def wrong(*arguments):
        made = right(*arguments)
        made.register_forward_hook(lambda _, __, outputs: (outputs[0], outputs[1] + 1))
        return made

    monkeypatch.setattr("topiarist.surgery.proof.cut", wrong)
    proof = prove(model, graph, random_keep(graph, 0), X)
    assert proof.max_rel_diff == float("inf")
    assert "integers" in proof.reason


# precision


def near_overflow():
    """Divides 3e38 by a sum over sixteen equal units: by half of them the quotient is beyond float32."""
    model = Net(lambda n, x: n.a(x) / n.b(x).sum(-1, keepdim=True), a=nn.Linear(4, 3), b=nn.Linear(4, 16))
    with torch.no_grad():
        for layer, bias in ((model.a, 3e38), (model.b, 0.1)):
            layer.weight.zero_()
            layer.bias.fill_(bias)
    return model.eval(), torch.ones(1, 4)


@pytest.mark.parametrize("kind", ["structure", "weight"])
def test_a_cut_that_overflows_in_its_own_precision_is_not_ok(kind):
    model, x = near_overflow()
    graph = trace(model, x)
    keep = {"b": torch.arange(16) < 8}
    if kind == "weight":
        model.b.weight.data.fill_(0.025)
        model.b.bias.data.zero_()
        graph, keep = graph.weights(), {"b.weight": torch.arange(64) < 32}
    proof = prove(model, graph, keep, x)
    assert not proof.ok
    assert proof.max_rel_diff <= 1e-10
    assert "overflow in float32" in proof.reason
    assert "rescale" in proof.reason
    assert prove(model.double(), graph, keep, x).ok


def test_a_pruning_that_overflows_is_refused():
    model, x = near_overflow()
    with pytest.raises(TopiaristError, match=r"overflow in float32.*rescale"):
        topiarist.prune(model, x, "random", Budget(ratio=0.5))


# blind proofs


def blind():
    model = shaken(line(conv(3, 8), nn.ReLU(), conv(8, 4))())
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize("steps", [1, 2])
def test_a_blind_proof_is_refused_unless_it_is_allowed(steps):
    with pytest.raises(TopiaristError, match=r"blind.*allow_blind"):
        topiarist.prune(blind(), X, Pruning.of("random", Budget(ratio=0.5), steps=steps))
    done = topiarist.prune(blind(), X, Pruning.of("random", Budget(ratio=0.5), steps=steps, allow_blind=True))
    assert done.proof.blind
    assert not done.proof.ok
    assert done.model[0].weight.shape[0] == 4
    assert "the proof is blind" in str(done)


def test_what_a_mask_changes_by_rounding_alone_is_blind():
    model = detector(lambda rows: rows.softmax(-1).sum(-1) >= 1)
    graph = trace(model, X)
    assert prove(model, graph, random_keep(graph, 0), X).blind


def test_other_faults_are_never_allowed():
    model, x = near_overflow()
    with pytest.raises(TopiaristError, match="overflow"):
        topiarist.prune(model, x, Pruning.of("random", Budget(ratio=0.5), allow_blind=True))


def test_units_that_the_example_does_not_show_are_proved_on_noise(monkeypatch):
    model = line(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))()
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(8, 4) + 0.1)
        model[0].bias.zero_()
    x = -torch.ones(1, 4)  # every unit is off
    graph = trace(model, x)
    keep = {"0": torch.arange(8) < 4}
    proof = prove(model, graph, keep, x)
    assert proof.ok, proof.reason
    assert proof.change > 1e-3
    assert "noise" in proof.checked
    swapped(monkeypatch, "0.weight")
    assert "cut and mask differ" in prove(model, graph, keep, x).reason


def test_units_that_were_zero_before_are_proved_on_tokens_too():
    """There is no noise on integers; other tokens tell whether the network depends on its input."""
    model = shaken(nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)))
    with torch.no_grad():
        model[1].weight[:4] = 0
        model[1].bias[:4] = 0
    x = torch.arange(10)[None]
    graph = trace(model, x)
    keep = {**graph.full(), "1": torch.arange(8) >= 4}
    proof = prove(model, graph, keep, x)
    assert proof.ok, proof.reason
    with torch.no_grad():
        model[3].weight.zero_()
    assert prove(model, graph, keep, x).blind
