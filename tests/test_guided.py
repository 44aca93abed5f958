"""Design patterns: what pruned networks share, stage by stage, and the new networks that are built from it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import door
import topiarist
from networks import random_keep
from topiarist import Architecture, Budget, TopiaristError, allocate, cost, guided
from topiarist.guided import KernelPattern, WidthPattern
from topiarist.report import patterns as designs
from topiarist.train import reinitialise


def vgg(depth: int, **options: object) -> nn.Module:
    fields = {"width": 0.125, "in_channels": 1, "input_size": 28} | options
    return topiarist.load_model(f"zoo:vgg{depth}", **fields)


X = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
SMALL, DEEP = (topiarist.trace(vgg(depth, classes=classes), X) for depth, classes in ((11, 10), (16, 26)))
LARGE = topiarist.trace(vgg(11, input_size=32, in_channels=3), torch.rand(1, 3, 32, 32))
STAGES = ("28x28", "14x14", "7x7", "4x4", "2x2")
WIDTHS = WidthPattern(dict(zip(STAGES, (1.0, 0.9, 0.5, 0.25, 0.125), strict=True)))
CROSS = (0.1, 0.2, 0.1, 0.2, 0.4, 0.2, 0.1, 0.2, 0.1)
KERNELS = KernelPattern(
    {s: {"3x3": [p * f for p in CROSS]} for s, f in zip(STAGES, (2, 1.5, 1, 0.5, 0.4), strict=True)}
    | {"1": {"1": (1,)}}
)
REST = {"exclude": ("classifier*.bias",)}  # what the layer produces, and not what it reads
fractions = st.floats(0.01, 1)


def counts(keep) -> list[int]:
    return [int(mask.sum()) for mask in keep.values()]


def spent(graph, keep, what="params") -> float:
    return getattr(cost(graph, keep), what) / getattr(cost(graph), what)


# ---- finding a pattern ----------------------------------------------------------------------------------------------


def test_widths_are_the_share_of_each_stage_worked_out_by_hand():
    keep = SMALL.full()
    units = {group.name: group.units for group in SMALL.groups}
    keep["features.8"] = torch.arange(units["features.8"]) < units["features.8"] // 2
    keep["features.15"] = torch.arange(units["features.15"]) < 4
    one, whole = Architecture.of(SMALL, keep), Architecture.of(SMALL, SMALL.full())
    assert WidthPattern.of(one).stages == {"28x28": 1, "14x14": 1, "7x7": 0.75, "4x4": 68 / 128, "2x2": 1}
    assert WidthPattern.of(one, whole).stages == {"28x28": 1, "14x14": 1, "7x7": 0.875, "4x4": 196 / 256, "2x2": 1}


def test_positions_are_the_share_of_the_kernels_worked_out_by_hand():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Flatten()
    )
    graph = topiarist.trace(nn.Sequential(*model, nn.Linear(50, 2)), torch.rand(1, 2, 5, 5)).weights()
    keep = graph.full()
    for name, mask in keep.items():
        kernels = mask.view(graph.shapes[name])
        if kernels.shape[2:] == (3, 3):
            kernels[:, :, 0, 2] = False  # a corner, everywhere
            kernels[0, 0, 1, 1] = False  # the centre, in one kernel of each layer
    keep["4.weight"][:25] = False
    found = KernelPattern.of(Architecture.of(graph, keep))
    positions = [1.0] * 9
    positions[2], positions[4] = 0.0, 1 - 2 / (6 + 12)
    assert found.stages == {"5x5": {"3x3": tuple(positions), "1x1": (1.0,)}, "1": {"1": (0.75,)}}
    shares = {("5x5", "3x3"): 1 - 20 / 162, ("5x5", "1x1"): 1, ("1", "1"): 0.75}
    assert found.shares == pytest.approx(shares)
    one = KernelPattern.of(Architecture.of(graph, keep), Architecture.of(graph, graph.full()))
    assert one.stages["5x5"]["3x3"][2] == 0.5


def test_groups_of_weights_know_their_stage():
    stages = {group.name: group.stage for group in SMALL.weights().groups}
    assert stages == {f"{group.name}.weight": group.stage for group in SMALL.groups} | {"classifier.weight": "1"}


# ---- building from it -----------------------------------------------------------------------------------------------


@given(st.lists(fractions, min_size=5, max_size=5), st.floats(0.03, 0.98), st.sampled_from(["params", "macs"]))
def test_widths_meet_any_budget_within_a_unit_by_one_factor(values, share, what):
    pattern = WidthPattern(dict(zip(STAGES, values, strict=True)))
    keep = pattern.keep(DEEP, Budget(**{what: share}, **REST))
    assert spent(DEEP, keep, what) <= share * (1 + 1e-12)
    groups = [group for group in DEEP.groups if group.stage in STAGES]
    kept = {group.name: int(keep[group.name].sum()) for group in groups}
    full = {group.name: pattern.stages[group.stage] * group.units for group in groups}
    # one factor t gives every group its width: kept - ½ <= t * full < kept + ½, but for the floor of one and the cap
    least = max([(kept[name] - 0.5) / full[name] for name in kept if kept[name] > 1], default=0.0)
    following = {g.name: (kept[g.name] + 0.5) / full[g.name] for g in groups if kept[g.name] < g.units}
    assert least <= min(following.values()) * (1 + 1e-9)
    # and the next unit, one of those that are next at the same factor, would be too much
    due = [name for name, factor in following.items() if factor <= min(following.values()) * (1 + 1e-9)]
    more = [keep | {name: torch.arange(DEEP[name].units) <= kept[name]} for name in due]
    assert max(spent(DEEP, each, what) for each in more) > share


@pytest.mark.parametrize("share", [0.6, 0.2, 0.05])
def test_the_uniform_pattern_is_uniform_pruning(share):
    same = {group.name: -torch.arange(group.units).float() for group in SMALL.groups}
    for what in ("params", "macs"):
        keep = WidthPattern.uniform(SMALL).keep(SMALL, Budget(**{what: share}))
        assert all(
            torch.equal(keep[name], mask) for name, mask in allocate(SMALL, same, Budget(**{what: share})).items()
        )


def test_a_pattern_gives_its_own_network_back_at_its_own_budget():
    keep = {group.name: torch.arange(group.units) < WIDTHS.stages[group.stage] * group.units for group in SMALL.groups}
    pattern = WidthPattern.of(Architecture.of(SMALL, keep))
    again = pattern.keep(SMALL, Budget(params=spent(SMALL, keep)))
    assert counts(again) == counts(keep)
    assert WidthPattern.of(Architecture.of(SMALL, again)) == pattern


def test_a_kernel_pattern_gives_its_own_frequencies_back():
    keep = topiarist.prune(vgg(11), X, "magnitude", Budget(ratio=0.2)).architecture
    pattern = KernelPattern.of(keep)
    again = KernelPattern.of(Architecture.of(SMALL.weights(), pattern.keep(SMALL, Budget(ratio=0.2))))
    for stage, kernels in pattern.stages.items():
        assert again.stages[stage]["3x3" if stage != "1" else "1"] == pytest.approx(*kernels.values(), abs=0.05)
    assert again.shares == pytest.approx(pattern.shares, abs=0.02)


def test_more_budget_never_takes_a_unit_away():
    for pattern, graph in ((WIDTHS, SMALL), (KERNELS, SMALL.weights())):
        before = None
        for share in (0.05, 0.1, 0.2, 0.5, 0.9):
            keep = pattern.keep(graph, Budget(params=share))
            assert before is None or all(bool((keep[name] | ~mask).all()) for name, mask in before.items())
            before = keep


def test_positions_of_new_masks_are_as_frequent_as_the_pattern_says():
    weights = DEEP.weights()
    for share in (0.02, 0.1, 0.3):
        keep = KERNELS.keep(DEEP, Budget(ratio=share), seed=3)
        assert sum(counts(keep)) == int(share * sum(group.units for group in weights.groups))
        largest = keep["features.27.weight"].view(-1, 9)
        factor = float(largest[:, 0].float().mean()) / KERNELS.stages["4x4"]["3x3"][0]
        for group in weights.groups:
            probabilities = next(iter(KERNELS.stages[group.stage].values()))
            kept = keep[group.name].view(-1, len(probabilities))
            n = len(kept)
            for position, p in enumerate(probabilities):
                wanted = min(1.0, factor * p)
                error = math.sqrt(wanted * (1 - wanted) / n) + 2 / n + 1e-3
                assert abs(float(kept[:, position].float().mean()) - wanted) <= 3 * error, (group.name, position)


def test_uniform_sparsification_thins_all_layers_and_positions_alike():
    keep = KernelPattern.uniform(SMALL).keep(SMALL, Budget(ratio=0.2))
    for group in SMALL.weights().groups:
        shape = SMALL.shapes[group.name]
        kernels = keep[group.name].view(shape[0] * shape[1], -1).float()
        assert kernels.mean(0).sub(0.2).abs().max() <= 1 / len(kernels)


def test_the_seed_decides_which_weights_stay():
    one, same, other = (KERNELS.keep(SMALL, Budget(params=0.2), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    state = torch.get_rng_state()
    KERNELS.keep(SMALL, Budget(params=0.2))
    assert torch.equal(state, torch.get_rng_state())


def test_positions_that_no_network_kept_are_filled_last():
    pattern = KernelPattern({stage: {"3x3": (0, 0, 0, 0, 0.5, 0, 0, 0, 0)} for stage in STAGES})
    few, many = (pattern.keep(SMALL, Budget(ratio=r, exclude=("classifier*",))) for r in (1 / 18, 1 / 3))
    for name in few.keys() - {"classifier.weight"}:
        assert few[name].view(-1, 9).sum(0)[[0, 1, 2, 3, 5, 6, 7, 8]].sum() == 0
        assert many[name].view(-1, 9)[:, 4].all()


# ---- other networks -------------------------------------------------------------------------------------------------


def test_a_pattern_moves_to_another_depth_and_other_classes_and_is_trained_from_scratch():
    keep = WIDTHS.keep(DEEP, Budget(params=0.3, **REST))
    found = WidthPattern.of(Architecture.of(DEEP, keep)).stages
    factors = [found[stage] / WIDTHS.stages[stage] for stage in STAGES[2:]]  # those that are not whole
    assert max(factors) - min(factors) <= 0.1 * max(factors)
    model = Architecture.of(DEEP, keep).build(lambda: vgg(16, classes=26))
    assert sum(p.numel() for p in model.parameters()) == cost(DEEP, keep).params
    assert model(X.expand(2, -1, -1, -1)).shape == (2, 26)
    sparse = KERNELS.keep(DEEP, Budget(params=0.1), seed=0)
    model = reinitialise(vgg(16, classes=26), DEEP.weights(), sparse, seed=0)
    weight = dict(model.named_parameters())["features.34.weight"]
    assert torch.equal(weight.flatten() != 0, sparse["features.34.weight"])


def test_a_pattern_moves_to_images_of_another_size_by_the_order_of_its_maps():
    moved = WIDTHS.on(LARGE)
    assert moved.stages == dict(zip(LARGE.stages, WIDTHS.stages.values(), strict=True))
    assert next(iter(moved.stages)) == "32x32"
    share = spent(LARGE, moved.keep(LARGE, Budget(macs=0.4)), "macs")
    assert 0.38 <= share <= 0.4
    kernels = KERNELS.on(LARGE)
    assert kernels.stages["8x8"] == KERNELS.stages["7x7"]
    assert kernels.stages["1"] == KERNELS.stages["1"]
    kernels.keep(LARGE, Budget(params=0.1))


def test_stages_that_the_pattern_lacks_are_refused():
    with pytest.raises(TopiaristError, match=r"no stage '1', where classifier.0 is: use pattern.on\(graph\)"):
        WIDTHS.keep(DEEP, Budget(params=0.3))
    with pytest.raises(TopiaristError, match=r"no stage '32x32', where features.0 and 3 more groups are"):
        WIDTHS.keep(LARGE, Budget(params=0.3))
    with pytest.raises(TopiaristError, match=r"no kernel 3x3 on '32x32'"):
        KERNELS.keep(LARGE, Budget(params=0.3))
    with pytest.raises(TopiaristError, match=r"has 1 stages of feature maps \(7x7\), but the network 5"):
        WidthPattern({"7x7": 0.5, "1": 1.0}).on(SMALL)
    keep = WIDTHS.keep(DEEP, Budget(params=0.3, ratios={"classifier*": 0.5}))
    assert int(keep["classifier.0"].sum()) == DEEP["classifier.0"].units // 2


def test_the_command_line_averages_folders_and_draws(tmp_path, capsys):
    for name, method in (("a", "l1"), ("b", "random"), ("c", "magnitude")):
        options = ["--method", method, "--budget.ratio", "0.5", "--input", door.SHAPE, "--out", tmp_path / name]
        save_file(topiarist.load_model(door.NET).state_dict(), weights := tmp_path / f"{name}.safetensors")
        assert door.run("prune", door.NET, "--weights", weights, *options) == 0
    capsys.readouterr()
    assert door.run("pattern", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--json") == 0
    shapes = [Architecture.load(tmp_path / name / "architecture.json") for name in "abc"]
    out = ("--out", tmp_path / "out")
    pattern = WidthPattern.of(*shapes[:2])
    assert WidthPattern.from_json(json.loads(capsys.readouterr().out)) == pattern
    assert guided.load(tmp_path / "out" / "pattern.json") == pattern
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".svg", ".png"}
    assert door.run("pattern", "--out", tmp_path / "out", tmp_path / "c") == 0
    assert guided.load(tmp_path / "out" / "pattern.json") == KernelPattern.of(shapes[2])
    assert "weights kept" in capsys.readouterr().out
    assert "are not individual weights" in door.one_sentence(
        door.run("pattern", tmp_path / "a", tmp_path / "c", *out), capsys
    )
    assert "needs NETWORKS" in door.one_sentence(door.run("pattern"), capsys)
    assert "cannot read" in door.one_sentence(door.run("pattern", tmp_path / "none", *out), capsys)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_no_pattern_can_do_is_refused():
    whole = Architecture.of(SMALL, SMALL.full())
    sparse = Architecture.of(SMALL.weights(), {})
    blocks = topiarist.trace(topiarist.load_model("zoo:resnet20"), torch.rand(1, 3, 32, 32)).blocks()
    for wrong, message in (
        (lambda: WidthPattern.of(), "give at least one"),
        (lambda: KernelPattern.of(), "give at least one"),
        (lambda: guided.of(), "give at least one"),
        (lambda: guided.of(whole, None), "but got NoneType"),
        (lambda: WidthPattern.of(SMALL), "averages topiarist.Architectures, but got Graph"),
        (lambda: WidthPattern.of(sparse), "not channels, neurons or heads"),
        (lambda: KernelPattern.of(whole), "are not individual weights"),
        (lambda: WIDTHS.keep(SMALL.weights(), Budget(params=0.3)), "not channels, neurons or heads"),
        (lambda: WIDTHS.keep(blocks, Budget(params=0.3)), "not channels, neurons or heads"),
        (lambda: WIDTHS.keep(SMALL, 0.3), "must be a topiarist.Budget, but got 0.3"),
        (lambda: WIDTHS.keep(SMALL, Budget(params=0.3, allocation="uniform")), "the pattern itself shares"),
        (lambda: WIDTHS.keep(SMALL, Budget()), "names no amount"),
        (lambda: WIDTHS.keep(SMALL, Budget(params=0.0)), "leave at least"),
        (lambda: WIDTHS.keep(SMALL, Budget(params=0.3, exclude=("fc",))), "matches no group"),
    ):
        with pytest.raises(TopiaristError, match=message):
            wrong()


def test_random_architectures_have_a_pattern():
    for seed in range(5):
        widths = WidthPattern.of(Architecture.of(SMALL, random_keep(SMALL, seed)))
        assert list(widths.stages) == list(STAGES)
        assert all(0 < kept <= 1 for kept in widths.stages.values())


# ---- files and pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [WIDTHS, KERNELS], ids=["widths", "kernels"])
def test_a_file_gives_the_same_pattern_back(pattern, tmp_path):
    pattern.save(tmp_path / "pattern.json")
    assert guided.load(tmp_path / "pattern.json") == pattern
    assert type(pattern).load(tmp_path / "pattern.json") == pattern
    assert type(pattern).from_json(json.loads(json.dumps(pattern.to_json()))) == pattern
    other = KernelPattern if pattern is WIDTHS else WidthPattern
    with pytest.raises(TopiaristError, match="this is a pattern of"):
        other.load(tmp_path / "pattern.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "topiarist.architecture"}, "no design pattern"),
        ({"version": 2}, "version 2, this release reads 1"),
        ({"kind": "colours"}, "does not know"),
        ({"kind": None}, "pattern of None"),
        ({"stages": [1]}, "stages of the pattern must be a mapping"),
        ({"stages": {}}, "at least one stage"),
        ({"stages": {"7x7": 0}}, "above 0 and at most 1"),
        ({"stages": {"7x7": 1.5}}, "above 0 and at most 1"),
        ({"stages": {"7x7": True}}, "'7x7' of stages of the pattern must be a finite number"),
        ({"stages": {"7x7": "1"}}, "must be a finite number, but got '1'"),
        ({"stages": {"7x7": float("nan")}}, "NaN is not a finite number"),
        ({"kind": "kernels", "stages": {"7x7": 0.5}}, "'7x7' of stages of the pattern must be a mapping"),
        ({"kind": "kernels", "stages": {"7x7": {}}}, "a size of kernel in each"),
        ({"kind": "kernels", "stages": {"7x7": {"3x": [1, 1, 1]}}}, "write 3x3"),
        ({"kind": "kernels", "stages": {"7x7": {"3x3": [1, 1, 1]}}}, "one probability for each"),
        ({"kind": "kernels", "stages": {"7x7": {"3x3": 1}}}, "'3x3' of '7x7' of stages of the pattern must be a list"),
        ({"kind": "kernels", "stages": {"7x7": {"1x2": [1, 2]}}}, "numbers from 0 to 1"),
        ({"kind": "kernels", "stages": {"7x7": {"1x2": [0, 0]}}}, "one above 0"),
        ({"kind": "kernels", "stages": {"7x7": {"1x2": [1, float("nan")]}}}, "NaN is not a finite number"),
        ({"kind": "kernels", "stages": {"7x7": {"1x2": [1, None]}}}, "entry 2 of .* must be a finite number"),
        ({"kind": "kernels", "stages": {"7x7": {"1x2": "ab"}}}, "must be a list"),
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(change, message, tmp_path):
    path = tmp_path / "pattern.json"
    path.write_text(json.dumps(WIDTHS.to_json() | change))
    with pytest.raises(TopiaristError, match=message):
        guided.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_no_json_file_holds_are_refused_in_python_too(value):
    with pytest.raises(TopiaristError, match="must be a finite number"):
        guided.WidthPattern({"7x7": value})
    with pytest.raises(TopiaristError, match="must be a finite number"):
        guided.KernelPattern({"7x7": {"1x2": [1, value]}})


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[]")
    for name, message in (
        ("broken", "cannot read the pattern"),
        ("deep", "cannot read the pattern"),
        ("list", "no design pattern"),
        ("none", "cannot read the pattern"),
    ):
        with pytest.raises(TopiaristError, match=message):
            guided.load(tmp_path / f"{name}.json")


def test_a_pattern_is_a_frozen_value():
    stages = {"7x7": 0.5}
    pattern = WidthPattern(stages)
    stages["7x7"] = 0.1
    assert pattern == WidthPattern({"7x7": 0.5})
    with pytest.raises(AttributeError):
        pattern.stages = {}


def test_the_pictures_show_what_the_pattern_says(tmp_path):
    (bars,) = designs.draw(WIDTHS).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([100, 90, 50, 25, 12.5])
    assert [label.get_text() for label in bars.get_xticklabels()] == list(STAGES)
    bars, *maps = designs.draw(KERNELS).axes
    assert [bar.get_height() for bar in bars.patches][4:] == pytest.approx([100 * 1.6 / 9 * 0.4, 100])
    shown = [axes.images[0].get_array().tolist() for axes in maps if axes.images]
    assert len(shown) == 5
    assert shown[2] == [list(CROSS[0:3]), list(CROSS[3:6]), list(CROSS[6:9])]
    for name in ("one.svg", "two.svg", "three.png"):
        designs.save_pattern(KERNELS, tmp_path / name)
    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()
