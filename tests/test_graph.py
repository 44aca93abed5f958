"""What `trace` finds: groups, slices, pins with their reasons, and that it leaves the network as it was."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import topiarist
from networks import CASES, Net, attention, conv, images, line, net, qkv_parts, shaken, tokens
from topiarist import TopiaristError, trace
from topiarist.graph.sizes import Size

ROLES = {"output", "input", "bias", "scale", "shift", "statistic", "weight", "other"}


def widths(graph):
    return {group.name: group.units for group in graph.groups}


def places(graph, group, tensor, axis):
    (part,) = [part for part in graph[group].slices if (part.tensor, part.axis) == (tensor, axis)]
    return part.positions.tolist()


@pytest.mark.parametrize("name", CASES)
def test_known_networks_have_known_groups(name):
    case = CASES[name]
    graph = trace(case.model(), case.inputs)
    assert widths(graph) == case.groups
    assert graph.unknown == ()
    for group in graph.groups:
        assert group.units > 1
        for part in group.slices:
            positions = part.positions
            assert positions.shape[0] == group.units
            assert positions.dtype == torch.int64
            assert positions.unique().numel() == positions.numel()
            assert 0 <= int(positions.min()) <= int(positions.max()) < graph.shapes[part.tensor][part.axis]
            assert part.role in ROLES
    cut_axes = {(part.tensor, part.axis) for group in graph.groups for part in group.slices}
    pinned = {(pin.tensor, pin.axis) for pin in graph.pinned}
    assert not cut_axes & pinned
    every = {(t, a) for t, shape in graph.shapes.items() for a, size in enumerate(shape) if size > 1}
    assert cut_axes | pinned == every, "every axis is in a group or has a reason to stay"
    assert all(pin.reason for pin in graph.pinned)


def test_slices_of_a_plain_chain():
    graph = trace(CASES["chain"].model(), images(1))
    found = [(part.tensor, part.axis, part.role) for part in graph["0"].slices]
    assert found[0] == ("0.weight", 0, "output")
    assert set(found) == {
        ("0.weight", 0, "output"), ("0.bias", 0, "bias"), ("1.weight", 0, "scale"), ("1.bias", 0, "shift"),
        ("1.running_mean", 0, "statistic"), ("1.running_var", 0, "statistic"), ("3.weight", 1, "input"),
    }  # fmt: skip
    assert all(part.positions.tolist() == [[u] for u in range(8)] for part in graph["0"].slices)
    assert graph["0"].stage == "6x6"
    assert [part.tensor for part in graph["0"].by_role("input")] == ["3.weight"]


def test_flatten_gives_each_channel_all_its_places():
    graph = trace(CASES["flatten"].model(), images(1))
    assert places(graph, "0", "3.weight", 1) == [[36 * u + p for p in range(36)] for u in range(5)]


def test_groups_and_widths_of_a_grouped_convolution():
    graph = trace(CASES["grouped"].model(), images(1))
    assert places(graph, "0:rows", "0.weight", 0) == [[4 * g + c for c in range(4)] for g in range(3)]
    assert places(graph, "0:rows", "1.weight", 0) == [[6 * g + c for c in range(6)] for g in range(3)]
    assert places(graph, "0:columns", "0.weight", 0) == [[4 * g + c for g in range(3)] for c in range(4)]
    assert places(graph, "0:columns", "1.weight", 1) == [[c] for c in range(4)]
    assert places(graph, "1", "1.weight", 0) == [[6 * g + c for g in range(3)] for c in range(6)]
    assert places(graph, "1", "2.weight", 1) == [[6 * g + c for g in range(3)] for c in range(6)]


def test_heads_and_widths_of_attention():
    graph = trace(CASES["attention"].model(), tokens(1))
    heads = [[12 * s + 4 * h + w for s in range(3) for w in range(4)] for h in range(3)]
    assert places(graph, "qkv:rows", "qkv.weight", 0) == heads
    assert places(graph, "qkv:columns", "proj.weight", 1) == [[4 * h + w for h in range(3)] for w in range(4)]


def test_channel_shuffle_moves_the_places():
    graph = trace(CASES["channel shuffle"].model(), images(1))
    # both groups of `b` lose as many channels, and so do both of `c`, which reads channel j of group g at 2j + g
    assert places(graph, "b:columns", "b.weight", 0) == [[t, t + 3, t + 6, t + 9] for t in range(3)]
    assert places(graph, "b:columns", "c.weight", 1) == [[2 * t, 2 * t + 1] for t in range(3)]


def outline(graph):
    return [(g.name, [(p.tensor, p.axis, p.positions.tolist()) for p in g.slices]) for g in graph.groups]


def test_batch_size_changes_nothing():
    for name in ("grouped", "attention", "multi-head", "squeeze and excitation"):
        case = CASES[name]
        model = case.model()
        expected = outline(trace(model, case.inputs))
        for batch in (1, 3):
            x = case.inputs[:1].repeat(batch, *[1] * (case.inputs.ndim - 1))
            assert outline(trace(model, x)) == expected


@pytest.mark.parametrize(("rectangles", "expected"), [
    ("both", {"qkv:rows": 3, "qkv:columns": 4}), ("rows", {"qkv": 3}), ("columns", {"qkv": 4}),
])  # fmt: skip
def test_rectangles_can_be_restricted(rectangles, expected):
    graph = trace(CASES["attention"].model(), tokens(2), rectangles=rectangles)
    assert widths(graph) == expected


# pins


def test_an_operator_without_a_rule_pins_what_it_touches_and_is_named():
    model = Net(
        lambda n, x: n.head(n.hidden(torch.linalg.qr(n.embed(x))[0])),
        embed=nn.Linear(12, 5), hidden=nn.Linear(5, 6), head=nn.Linear(6, 4),
    )  # fmt: skip
    graph = trace(model, tokens(2))
    assert widths(graph) == {"hidden": 6}
    assert any("linalg_qr" in name for name in graph.unknown)
    assert "without a rule" in next(p.reason for p in graph.pinned if (p.tensor, p.axis) == ("embed.weight", 0))


def test_a_custom_operator_is_an_operator_without_a_rule():
    @torch.library.custom_op("topiarist_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    model = Net(lambda n, x: n.last(n.second(twice(n.first(x)))), first=conv(3, 8), second=conv(8, 6), last=conv(6, 4))
    graph = trace(model, images(2))
    assert widths(graph) == {"second": 6}
    assert len(graph.unknown) == 1
    assert "twice" in graph.unknown[0]
    assert "twice" in graph.why("first.weight")


def test_reasons_name_what_pins():
    graph = trace(CASES["tied weights"].model(), CASES["tied weights"].inputs)
    reasons = {(pin.tensor, pin.axis): pin.reason for pin in graph.pinned}
    assert "embedding" in reasons["words.weight", 0] or "output" in reasons["words.weight", 0]
    graph = trace(CASES["chain"].model(), images(1))
    reasons = {(pin.tensor, pin.axis): pin.reason for pin in graph.pinned}
    assert "output" in reasons["8.weight", 0]
    assert "input" in reasons["0.weight", 1]
    assert "must stay" in graph.why("8.weight", 0)
    assert "not pinned" in graph.why("0.weight", 0)
    with pytest.raises(TopiaristError, match="no axis 7"):
        graph.why("8.weight", 7)
    with pytest.raises(TopiaristError, match="nonsense"):
        graph.why("nonsense")


def test_softmax_over_channels_pins_them():
    graph = trace(net(lambda n, x: n.b(n.a(x).softmax(1)), lambda: {"a": conv(3, 8), "b": conv(8, 4)})(), images(1))
    assert widths(graph) == {}
    assert "softmax" in graph.why("a.weight")


def test_parameters_that_nothing_uses_are_pinned():
    model = Net(lambda n, x: n.last(n.first(x)), first=conv(3, 8), last=conv(8, 4), spare=nn.Linear(7, 9))
    graph = trace(model, images(1))
    assert all("no operator used it" in pin.reason for pin in graph.pinned if pin.tensor == "spare.weight")


# inputs and outputs


@dataclass
class Found:
    logits: Tensor
    hidden: Tensor | None = None


def test_outputs_of_every_shape_are_pinned():
    for wrap in (
        lambda y, h: (y, h), lambda y, h: {"y": y, "inner": [h, None]}, lambda y, h: Found(y, h),
        lambda y, h: {"found": (Found(y, h), 3)},
    ):  # fmt: skip
        model = Net(
            lambda n, x: n.wrap(n.last(n.first(x)), n.side(x)), first=conv(3, 8), last=conv(8, 4), side=conv(3, 5)
        )
        model.wrap = wrap
        graph = trace(model, images(1))
        assert widths(graph) == {"first": 8}
        assert "output" in graph.why("side.weight")
        proof = topiarist.prove(model, graph, {"first": torch.arange(8) < 3}, images(1))
        assert proof.ok, proof.reason


def test_inputs_as_tensor_tuple_and_dict():
    model = Net(lambda n, x, scale=1.0: n.last(n.first(x) * scale), first=conv(3, 8), last=conv(8, 4))
    scale = torch.rand(1, 1, 6, 6)
    for inputs in (images(1), (images(1), scale), {"x": images(1), "scale": scale}, [images(1)]):
        assert widths(trace(model, inputs)) == {"first": 8}


def test_heads_that_run_only_in_training_are_cut_along():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.drop, self.head = conv(3, 8), nn.Dropout(), nn.Linear(8, 4)
            self.norm = nn.BatchNorm2d(8)
            self.aux = nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 4))

        def forward(self, x):
            x = self.norm(self.stem(x))
            y = self.head(self.drop(x).mean((2, 3)))
            return (y, self.aux(x)) if self.training else y

    model = shaken(Auxiliary())
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, images(2))
    assert widths(graph) == {"stem": 8, "aux.0": 6}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    smaller = topiarist.cut(model, graph, {"stem": torch.arange(8) < 5, "aux.0": torch.arange(6) > 3}).train()
    y, aux = smaller(images(3))
    assert (y.shape, aux.shape) == ((3, 4), (3, 4))
    assert topiarist.cost(graph).macs == (3 * 9 * 8) * 36 + 8 * 4, "what runs in training only costs nothing"


# limits and errors


@pytest.mark.parametrize(("options", "told"), [
    ({"seconds": 0}, "`seconds`"), ({"labels": 10}, "`labels`"), ({"rectangles": "diagonals"}, "'rows'"),
])  # fmt: skip
def test_limits(options, told):
    with pytest.raises(TopiaristError, match=told):
        trace(CASES["chain"].model(), images(1), **options)


@pytest.mark.parametrize("inputs", [images(1, channels=4), "text", None, (images(1), images(1)), {"y": images(1)}])
def test_a_model_that_fails_is_told_in_one_sentence(inputs):
    model = CASES["chain"].model()
    with pytest.raises(TopiaristError, match="the model fails on the example input") as told:
        trace(model, inputs)
    assert "\n" not in str(told.value)
    assert trace(model, images(1)).groups, "and the model is none the worse"


def test_weights_that_are_not_finite():
    model = CASES["chain"].model()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TopiaristError, match=r"3\.weight"):
        trace(model, images(1))


def test_names_of_groups():
    graph = trace(CASES["residual"].model(), images(1))
    with pytest.raises(TopiaristError, match="did you mean conv1"):
        graph["conv"]
    assert {name: int(keep.sum()) for name, keep in graph.full().items()} == {"stem": 8, "conv1": 6}
    assert graph.stages == {"6x6": ("stem", "conv1")}
    assert graph.parameters == tuple(name for name, _ in CASES["residual"].model().named_parameters())


def test_sites_are_the_outputs_that_carry_a_group():
    graph = trace(CASES["flatten"].model(), images(1))
    found = {(site.module, site.kind, site.axis): site.positions.tolist() for site in graph["0"].sites}
    assert found["0", "Conv2d", 1] == [[u] for u in range(5)]
    assert found["2", "Flatten", 1] == [[36 * u + p for p in range(36)] for u in range(5)]


# the model stays as it was


def state_of(model):
    modules = {
        name: (type(m), m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    plain = {
        (name, key): copy.deepcopy(value)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, (int, float, tuple, list, str))
    }
    return modules, plain, copy.deepcopy(model.state_dict())


def sizes_left(value):
    if isinstance(value, (tuple, list)):
        return any(sizes_left(entry) for entry in value)
    return isinstance(value, Size)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "attention", "encoder layer", "multi-head", "group norm"])
def test_the_model_is_left_as_it_was(name, training):
    case = CASES[name]
    model = case.model().train(training)
    next(model.children()).train(not training)
    model.register_forward_hook(lambda module, args, output: None)
    before = state_of(model)
    graph = trace(model, case.inputs)
    topiarist.prove(model, graph, {g.name: torch.arange(g.units) < 2 for g in graph.groups}, case.inputs)
    topiarist.check(model, graph, case.inputs)
    after = state_of(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(before[2][key], value) for key, value in after[2].items())
    assert not any(sizes_left(v) for m in model.modules() for v in m.__dict__.values())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_a_forward_pass_stores_is_left_as_it_was():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.calls = conv(3, 8), conv(8, 4), 0
            self.register_buffer("seen", torch.zeros(8))

        def forward(self, x):
            x = self.stem(x)
            self.calls += 1
            self.seen += x.detach().sum((0, 2, 3))
            self.shape, self.nested = x.shape, [x.shape[1], {"width": x.shape[1]}]
            return self.head(x)

    model = Counting().eval()
    trace(model, images(2))
    assert model.calls == 0
    assert type(model.calls) is int
    assert model.seen.abs().sum() == 0
    assert not sizes_left(model.shape)


def test_a_trace_may_be_repeated_and_runs_under_inference_mode():
    case = CASES["attention"]
    model = case.model()
    with torch.inference_mode():
        first = widths(trace(model, case.inputs))
    assert first == widths(trace(model, case.inputs)) == case.groups


def test_attention_with_an_odd_number_of_heads_and_one_unit_axes():
    model = shaken(Net(attention, **{**qkv_parts(), "heads": 1}))
    assert widths(trace(model, tokens(2))) == {"qkv": 12}
    model = shaken(Net(attention, **{**qkv_parts(), "heads": 12}))
    assert widths(trace(model, tokens(2))) == {"qkv": 12}
    assert widths(trace(line(conv(3, 1), conv(1, 8), conv(8, 4))(), images(1))) == {"1": 8}
