"""What counts of what a network returns is the user's to say; what nothing reads is named."""

import json
from collections import namedtuple

import pytest
import torch
from torch import nn

import topiarist
from networks import shaken
from topiarist import Pruning, TopiaristError
from topiarist.cli import main

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", ("last", "logits"))


class Heads(nn.Module):
    """Two heads on one trunk, whose last features are returned as well; a head for training; an unused layer."""

    def __init__(self, wrap=dict):
        super().__init__()
        self.wrap = wrap
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head, self.box, self.aux, self.unused = (nn.Linear(16, n) for n in (4, 6, 3, 5))

    def forward(self, x):
        last = self.b(self.a(x).relu()).relu()
        returned = {"last": last, "logits": self.head(last)}
        if self.wrap is dict:
            returned["box"] = self.box(last)
            if self.training:
                returned["aux"] = self.aux(last)
        return self.wrap(**returned)


def heads(wrap=dict):
    torch.manual_seed(0)
    return shaken(Heads(wrap))


def half(graph):
    return {group.name: torch.arange(group.units) % 2 == 0 for group in graph.groups}


@pytest.mark.parametrize(("outputs", "free"), [
    (None, {"a"}), ("logits", {"a", "b", "box", "aux"}), (1, {"a", "b", "box", "aux"}),
    (("logits", "box"), {"a", "b", "aux"}), (["logits", 2], {"a", "b", "aux"}),
    (lambda returned: returned["logits"].softmax(-1), {"a", "b", "box", "aux"}),
])  # fmt: skip
def test_only_what_counts_is_pinned_and_compared(outputs, free):
    model = heads()
    graph = topiarist.trace(model, X, outputs=outputs)
    assert {group.name for group in graph.groups} == free
    assert topiarist.prove(model, graph, half(graph), X).ok
    assert topiarist.check(model, graph, X) is graph
    smaller, counts = topiarist.cut(model, graph, half(graph))(X), outputs is not None
    assert smaller["last"].shape[1] == (8 if counts else 16)
    assert smaller["logits"].shape == (2, 4)
    assert not model._forward_hooks


def test_tuples_with_names_are_asked_by_name():
    model = heads(Pair)
    by_name, by_place = (topiarist.trace(model, X, outputs=outputs) for outputs in ("logits", 1))
    assert repr(by_name) == repr(by_place)
    assert {group.name for group in by_name.groups} == {"a", "b"}


def test_what_does_not_count_may_be_wrong_and_what_counts_may_not(monkeypatch):
    model, right = heads(), topiarist.cut
    graph = topiarist.trace(model, X, outputs="logits")

    def with_noise_in(name):
        def wrong(*arguments):
            made = right(*arguments)
            with torch.no_grad():
                made.get_parameter(name).add_(1.0)
            return made

        return wrong

    for name, ok in (("box.weight", True), ("head.weight", False)):
        monkeypatch.setattr("topiarist.surgery.proof.cut", with_noise_in(name))
        assert topiarist.prove(model, graph, half(graph), X).ok is ok


def test_a_proof_needs_no_effect_of_what_nothing_reads_and_one_of_all_else():
    model = heads()
    graph = topiarist.trace(model, X, outputs="logits")
    unread = {"box": torch.arange(6) < 2}
    assert topiarist.prove(model, graph, unread, X).ok
    with torch.no_grad():
        model.head.weight.zero_()
    assert topiarist.prove(model, graph, {"b": torch.arange(16) < 8, **unread}, X).blind


@pytest.mark.parametrize(("outputs", "message"), [
    ("logit", "no output 'logit': there are last, logits, box$"), (7, "no output 7: there are last, logits, box$"),
    ((), "write outputs='logits'"), (True, "write outputs='logits'"), (2.5, "write outputs='logits'"),
    (lambda returned: returned.logits, "fails on what the network returns .*; that has last, logits, box$"),
    (lambda returned: "logits", "holds no tensor: the network returns last, logits, box$"),
])  # fmt: skip
def test_what_there_is_not_is_refused_in_a_sentence(outputs, message):
    with pytest.raises(TopiaristError, match=message) as error:
        topiarist.trace(heads(), X, outputs=outputs)
    assert "\n" not in str(error.value)


def test_a_single_tensor_has_no_names():
    with pytest.raises(TopiaristError, match="a single tensor alone, so leave outputs out"):
        topiarist.trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), X, outputs="logits")


def test_prune_takes_them_in_the_call_in_the_request_and_with_the_graph():
    model = heads()
    graph = topiarist.trace(model, X, outputs="logits")
    results = [
        topiarist.prune(model, X, "l1", 0.5, outputs="logits"),
        topiarist.prune(model, X, Pruning.of("l1", 0.5, outputs="logits")),
        topiarist.prune(model, X, "l1", 0.5, graph=graph),
        topiarist.prune(model, X, "l1", 0.5, graph=graph, outputs="logits"),
    ]
    for result in results:
        assert result.graph.outputs == "logits"
        assert result.model(X)["last"].shape[1] < 16
        assert topiarist.prove(model, result.graph, result.keep, X).ok
    assert "nothing reads in evaluation: box (102 parameters), aux (51 parameters), unused (85" in str(results[0])
    with pytest.raises(TopiaristError, match="leave outputs out, or give it to trace"):
        topiarist.prune(model, X, "l1", 0.5, graph=graph, outputs="box")


def test_several_steps_count_alike():
    result = topiarist.prune(heads(), X, Pruning.of("l1", 0.4, steps=2, outputs=("logits",)))
    assert result.model(X)["last"].shape[1] < 16
    assert result.after.macs <= 0.4 * result.before.macs


def test_a_request_is_written_with_names_and_not_with_functions():
    for outputs in ("logits", 1, ("logits", "box")):
        request = Pruning.of("l1", 0.5, outputs=outputs)
        assert Pruning.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert "outputs" not in Pruning.of("l1", 0.5).to_json()
    with pytest.raises(TopiaristError, match="give names or places"):
        Pruning.of("l1", 0.5, outputs=lambda returned: returned).to_json()


def test_gradients_of_what_the_loss_does_not_reach_are_zero():
    batches = [(X, torch.tensor([0, 1]))]
    graph = topiarist.trace(heads(), X, outputs="logits")
    stats = topiarist.collect(heads(), graph, batches, {"gradients"})
    assert not stats.mean("box", "gradients.taylor").any()
    assert stats.mean("b", "gradients.taylor").any()


def test_unread_parts_are_the_largest_modules_and_say_who_reads_them():
    model = heads()
    nested = nn.Sequential(model, nn.Identity())
    unread = topiarist.trace(nested, X).unread
    assert unread == {"0.aux": (51, True), "0.unused": (85, False)}
    model.extra = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model.token = nn.Parameter(torch.ones(7))
    unread = topiarist.trace(model, X).unread
    assert unread["extra"] == (24, False)
    assert unread["token"] == (7, False)


def test_what_decides_a_branch_is_read():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.b(self.a(x).relu())
            return y if self.gate(x).sum() > 0 else -y

    assert topiarist.trace(shaken(Gated()), X).unread == {}


def tiny():
    """A network for the command line."""
    torch.manual_seed(0)
    return Heads()


def test_the_command_line_counts_and_names(tmp_path, capsys):
    model = heads()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    name = f"{__name__}:tiny"
    assert main(["inspect", name, "--input", "8", "--outputs", "logits", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {group["name"] for group in values["groups"]} == {"a", "b", "box", "aux"}
    assert values["unread"]["unused"] == {"parameters": 85, "in_training": False}
    assert main(["inspect", name, "--input", "8"]) == 0
    assert "Nothing reads aux in evaluation: 51 parameters, which training reads." in capsys.readouterr().out
    words = ["prune", name, "--input", "8", "--weights", str(tmp_path / "w.pt"), "--method", "l1"]
    words += ["--budget.macs", "0.5", "--outputs", "logits,box", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pruning"]["outputs"] == ["logits", "box"]
    assert result["kept"]["b"][0] < 16
    assert main(["inspect", name, "--input", "8", "--outputs", "logit"]) == 2
    assert "there are last, logits, box" in capsys.readouterr().err
