"""Pruning in several steps: the keeps of all steps are one keep of the original network, proved like any other."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topiarist
from networks import CASES, NIGHT, Net, call, conv, distance, images, shaken
from topiarist import Budget, Recipe, TopiaristError, add_selectors, prune
from topiarist.methods import SCHEDULES, make, names
from topiarist.methods._schedules import cubic, linear
from topiarist.models import make_model
from topiarist.models.zoo.preresnet import PreBasic, PreResNet
from topiarist.studies import Study, run

WIDE = ["chain", "residual", "dense", "grouped", "channel shuffle", "attention", "multi-head", "encoder layer"]
WIDE += ["literal attention", "tied weights", "split"]
RECIPE = Recipe(epochs=1, lr=0.02, schedule="constant")


@pytest.fixture(scope="module")
def digits():
    return topiarist.load_data("digits?train=300")


def digitsnet(seed=0):
    torch.manual_seed(seed)
    return topiarist.load_model("zoo:digitsnet", width=0.25)


def kept(found):
    return {name: mask.tolist() for name, mask in found.keep.items()}


# schedules


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 50), st.floats(0, 1))
def test_a_schedule_falls_to_the_target(name, steps, target):
    fractions = [SCHEDULES[name](step, steps, target) for step in range(1, steps + 1)]
    assert fractions[-1] == target
    assert all(a >= b for a, b in pairwise(fractions))
    assert all(target <= f <= 1 for f in fractions)


def test_known_values_of_the_schedules():
    assert [linear(n, 4, 0.2) for n in (1, 2, 3, 4)] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    # Zhu & Gupta: sparsity s_f + (s_i - s_f) (1 - t)^3 with s_i = 0 and s_f = 0.8
    assert [1 - cubic(n, 4, 0.2) for n in (1, 2, 3, 4)] == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    for name in SCHEDULES:
        for step in (0, 4):
            with pytest.raises(TopiaristError, match="step"):
                SCHEDULES[name](step, 3, 0.5)


# composition


@pytest.mark.parametrize("budget", [{"params": 0.5}, {"ratios": {"*": 0.5}}])
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.by_day(6)
def test_the_steps_are_one_cut_of_the_network_that_was_given(name, budget):
    case = CASES[name]
    model = case.model()
    found = prune(model, case.inputs, topiarist.Pruning.of("random", budget, steps=3))
    assert found.proof.max_rel_diff <= 1e-10, found.proof.reason
    again = found.architecture.apply(found.trained)
    assert torch.equal(call(again, case.inputs), call(found.model, case.inputs))
    for key, value in model.state_dict().items():  # nothing trained, so only the keep tells the two apart
        assert torch.equal(found.trained.state_dict()[key], value), key
    if "params" in budget:
        assert 0.1 * found.before.params < found.after.params <= 0.5 * found.before.params
    else:
        assert all(int(k.sum()) == max(1, len(k) // 2) for k in found.keep.values())


@pytest.mark.parametrize("budget", [
    {"ratio": 0.4}, {"macs": 0.4}, {"params": 0.4}, {"ratio": 0.55, "exclude": ["layer1*"]},
    {"macs": 0.4, "ratios": {"layer2.0.conv1": 0.5}}, {"ratio": 0.4, "allocation": "uniform"},
])  # fmt: skip
@pytest.mark.by_day(2)
def test_steps_without_training_keep_what_one_cut_keeps(budget):
    """Scales do not change when others go, so Network Slimming in steps must come to the very same network."""
    torch.manual_seed(0)
    x = images(2, size=8)
    model = add_selectors(shaken(PreResNet(3, 4, [4, 6, 8], 2, PreBasic, 5)), "auto", x)
    once = prune(model, x, "slimming", budget)
    for schedule in (None, "cubic"):
        several = topiarist.Steps(4 if NIGHT else 3, schedule=schedule)
        steps = prune(model, x, topiarist.Pruning.of("slimming", budget, steps=several))
        assert kept(once) == kept(steps), schedule
        assert torch.equal(once.model(x), steps.model(x)), schedule


@pytest.mark.parametrize("budget", [0.3, {"ratio": 0.3, "exclude": ["0.weight"]}, {"ratios": {"3*": 0.2, "0*": 0.5}}])
def test_steps_without_training_keep_the_weights_that_one_cut_keeps(budget):
    model = CASES["chain"].model()
    once, steps = (prune(model, images(2), topiarist.Pruning.of("magnitude", budget, steps=n)) for n in (1, 3))
    assert kept(once) == kept(steps)
    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), steps.model.parameters(), strict=True))
    assert once.after == steps.after


def test_a_floor_is_a_share_of_what_each_step_finds():
    """The multi-pass cap: no layer loses more than half of what it has in one pass, whatever it loses in all."""
    model = CASES["chain"].model()
    with torch.no_grad():
        model[1].weight.mul_(1e-3)  # the layer of 8 has lower scales than the one of 6
    budget = Budget(ratio=8 / 14, floor=0.5)
    widths = [
        prune(model, images(2), topiarist.Pruning.of("slimming", budget, steps=n)).architecture.widths for n in (1, 2)
    ]
    assert widths[0] == {"0": (4, 8), "3": (4, 6)}
    assert widths[1] == {"0": (3, 8), "3": (5, 6)}  # 8, 5 (3 of 14 are to go), 3 (half of 5, rounded up)
    with pytest.raises(TopiaristError, match="floor"):
        prune(model, images(2), "slimming", {"ratio": 0.3, "floor": 0.5})


def test_groups_that_come_down_to_one_unit_stay_there():
    model = CASES["chain"].model()
    found = prune(model, images(2), topiarist.Pruning.of("l1", {"ratios": {"0": 0}}, steps=3))
    assert int(found.keep["0"].sum()) == 1
    assert bool(found.keep["3"].all())
    assert found.proof.ok


def test_the_graph_with_its_options_is_followed():
    case = CASES["attention"]
    model = case.model()
    graph = topiarist.trace(model, case.inputs, rectangles="rows")
    found = prune(model, case.inputs, topiarist.Pruning.of("random", {"ratio": 0.4}, steps=2), graph=graph)
    assert set(found.keep) == {"qkv"}
    assert found.model.heads < 3


# training between the steps


QUICK = {"lcp": {"population": 8, "tournament": 4, "candidates": 20, "examples": 64}, "lasso": {"examples": 64}}


@pytest.mark.parametrize("method", [n for n in names() if make(n).granularity == "structure" and n != "sss"])
@pytest.mark.by_day(6)
def test_every_method_goes_in_steps(method, digits):
    chosen = make(method, **QUICK.get(method, {}))
    budget = None if method == "pfa" else {"macs": 0.5}
    before = RECIPE if method == "l0" else None  # gates that have not been trained rank nothing
    steps = topiarist.Steps(2, training=None if before else RECIPE)
    request = topiarist.Pruning.of(chosen, budget, steps=steps, sparse_training=before)
    found = prune(digitsnet(), digits.example(), request, data=digits)
    assert found.proof.ok
    assert distance(found.architecture.apply(found.trained)(digits.example()), found.model(digits.example())) == 0
    assert budget is None or found.after.macs <= 0.5 * found.before.macs


def test_whole_blocks_go_in_one_cut(digits):
    with pytest.raises(TopiaristError, match="leave steps out"):
        prune(make_model("zoo:resnet20")(), torch.randn(2, 3, 32, 32), topiarist.Pruning.of("sss", 0.5, steps=2))


def test_prune_retrain_prune(digits):
    """Han et al.: what is gone stays gone, and what is left is retrained and pruned again."""
    model = digitsnet()
    found = prune(
        model,
        digits.example(),
        topiarist.Pruning.of("magnitude", 0.1, steps=topiarist.Steps(3, training=RECIPE)),
        data=digits,
    )
    first = prune(model, digits.example(), "magnitude", 0.7).keep
    alive = sum(int(k.sum()) for k in found.keep.values())
    assert alive == int(0.1 * sum(k.numel() for k in found.keep.values()))
    for name, mask in found.keep.items():
        assert not bool((mask & ~first[name]).any()), "the first step's weights never come back"
        weight = found.model.get_parameter(name)
        assert bool((weight.flatten()[~mask] == 0).all())
        changed = weight.flatten()[mask] != model.get_parameter(name).flatten()[mask]
        assert bool(changed.float().mean() > 0.9), "the survivors were trained on"
    assert kept(found) != kept(prune(model, digits.example(), "magnitude", 0.1)), "and so others of them survive"
    assert found.after.params == sum(int(p.count_nonzero()) for p in found.model.parameters())


@pytest.mark.nightly
def test_the_same_seed_gives_the_same_keep(digits):
    runs = [
        prune(
            digitsnet(),
            digits.example(),
            topiarist.Pruning.of("taylor", {"ratio": 0.5}, steps=topiarist.Steps(3, training=RECIPE)),
            data=digits,
            run=topiarist.Run(seed=s),
        )
        for s in (0, 0, 1)
    ]
    assert kept(runs[0]) == kept(runs[1])
    assert all(torch.equal(a, b) for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True))
    assert kept(runs[0]) != kept(runs[2])


def test_a_method_trains_its_way_before_every_step(digits):
    rows = []
    found = prune(
        digitsnet(),
        digits.example(),
        topiarist.Pruning.of(
            make("slimming", lam=0.01),
            {"ratio": 0.4},
            steps=topiarist.Steps(2, training=RECIPE),
            sparse_training=Recipe(epochs=2, lr=0.02),
        ),
        data=digits,
        run=topiarist.Run(progress=lambda *row: rows.append(row[:2])),
    )
    assert rows == [(n, 5) for n in (1, 2, 3, 4, 5)]
    assert found.proof.ok


def test_a_schedule_of_the_methods_own_counts(digits):
    asked = []

    class Slow(type(make("l1"))):
        def kept(self, step, steps, target):
            asked.append((step, steps, target))
            return linear(step, steps, target)

    model = digitsnet()
    prune(model, digits.example(), topiarist.Pruning.of(Slow(), {"macs": 0.5}, steps=2))
    assert asked == [(1, 2, 0.5), (2, 2, 0.5)]
    prune(
        model, digits.example(), topiarist.Pruning.of(Slow(), {"macs": 0.5}, steps=topiarist.Steps(2, schedule="cubic"))
    )
    assert len(asked) == 2


def test_the_given_model_stays_as_it_is(digits):
    model = digitsnet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prune(
        model,
        digits.example(),
        topiarist.Pruning.of("l1", 0.5, steps=topiarist.Steps(2, training=RECIPE)),
        data=digits,
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# errors


@pytest.mark.parametrize(("steps", "named"), [
    (0, "steps"), (1.5, "steps"), (True, "steps"), ({"schedule": "slow"}, "schedule"),
    ({"count": 2, "training": {"epochs": 1}}, "give data"), ({"counts": 2}, "did you mean count"),
])  # fmt: skip
def test_steps_that_cannot_be(steps, named):
    with pytest.raises(TopiaristError, match=named) as error:
        prune(CASES["chain"].model(), images(2), topiarist.Pruning.of("l1", 0.5, steps=steps))
    assert "\n" not in str(error.value)


def test_a_preset_is_one_cut():
    model = topiarist.load_model("zoo:resnet56", width=0.25)
    with pytest.raises(TopiaristError, match="one cut"):
        prune(model, images(1, size=32), topiarist.Pruning.of(make("l1", preset="resnet56-A"), steps=2))


def test_what_cannot_be_proved_is_pinned_in_every_step():
    inner = Net(lambda n, x: n.b(n.a(x) * 2 if n.a(x).shape[1] > 7 else n.a(x)), a=conv(3, 8), b=conv(8, 5, 1))
    model = shaken(Net(lambda n, x: n.last(n.after(n.inner(x))), inner=inner, after=conv(5, 6), last=conv(6, 4)))
    found = prune(model, images(2), topiarist.Pruning.of("l1", {"ratio": 0.5}, steps=2))
    assert found.proof.max_rel_diff <= 1e-10
    assert int(found.keep["after"].sum()) == 3
    assert found.model.inner.a.weight.shape == (8, 3, 3, 3)


# studies

STUDY = {
    "network": "zoo:digitsnet?width=0.25", "data": "digits", "seeds": [0], "arms": [], "recipe": {"epochs": 1},
    "finetune": {"epochs": 4, "lr": 0.01, "schedule": "constant"},
}  # fmt: skip


@pytest.mark.nightly
def test_a_study_compares_one_cut_with_several(tmp_path):
    one = {"method": "magnitude", "budget": {"ratio": 0.2}}
    several = {**one, "steps": {"count": 2, "schedule": "cubic", "training": {"epochs": 1}}}
    study = Study.of({**STUDY, "prunings": [one, several]})
    assert Study.of(study.as_json()) == study
    assert [study.label(pruning) for pruning in study.prunings] == [
        "magnitude", "magnitude (steps.count 2, steps.schedule cubic, steps.training.epochs 1, steps.training.lr 0.01)",
    ]  # fmt: skip
    alone = {cell.key for cell in Study.of({**STUDY, "prunings": [one]}).cells()}
    assert alone < {cell.key for cell in study.cells()}, "what a study of one cut has computed is found again"
    results = run(study, tmp_path, quiet=True)
    assert results["failed"] == {}
    rows = [row for row in results["rows"] if row["arm"] == "pruned"]
    assert rows[0]["params"] == rows[1]["params"]
    assert rows[1]["accuracy"] != rows[0]["accuracy"]


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 0},
        {"steps": {"schedule": "slow"}},
        {"steps": {"count": 2, "training": {"epochs": -1}}},
        {"stops": 2},
    ],
)
def test_a_study_with_steps_that_cannot_be(more):
    with pytest.raises(TopiaristError):
        Study.of({**STUDY, "prunings": [{"method": "l1", "budget": {"macs": 0.5}, **more}]})


# rewinding


@pytest.mark.parametrize(("method", "budget"), [("magnitude", 0.2), ("l1", {"macs": 0.4})])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.by_day(2)
def test_survivors_return_to_their_first_values(method, budget, steps, digits):
    model = digitsnet()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    data = digits
    topiarist.fit(model, data, RECIPE)
    found = prune(
        model,
        digits.example(),
        topiarist.Pruning.of(method, budget, steps=topiarist.Steps(steps, training=RECIPE), rewind=True),
        data=data,
        initial=start,
    )
    first = digitsnet()
    first.load_state_dict(start)
    ticket = topiarist.cut(first, found.graph, found.keep)
    assert found.proof.ok
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, ticket.state_dict()[name]), name
    assert found.after == topiarist.cost(found.graph, found.keep)


def test_what_is_rewound_in_each_step_decides_the_next(digits):
    """Iterative tickets: the second cut sees weights trained from the first values, not from where training ended."""
    model, data = digitsnet(), digits
    start = {name: value.clone() for name, value in model.state_dict().items()}
    topiarist.fit(model, data, RECIPE)
    once = prune(model, digits.example(), "magnitude", 0.6)
    again = topiarist.cut(digitsnet(), once.graph, once.keep)
    topiarist.fit(again, data, RECIPE, graph=once.graph, keep=once.keep)
    weights = {group.name: again.get_parameter(group.name).abs().flatten() for group in once.graph.groups}
    found = prune(
        model,
        digits.example(),
        topiarist.Pruning.of(
            "magnitude", 0.2, steps=topiarist.Steps(2, schedule="linear", training=RECIPE), rewind=True
        ),
        data=data,
        initial=start,
    )
    kept_now = torch.cat([weights[name][mask] for name, mask in found.keep.items()])
    gone_now = torch.cat([weights[name][mask & ~found.keep[name]] for name, mask in once.keep.items()])
    assert kept_now.min() >= gone_now.max()
    assert sum(int(mask.sum()) for mask in found.keep.values()) == int(
        0.2 * sum(len(mask) for mask in found.keep.values())
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state | {"weight": torch.zeros(1)}, "the network has no 'weight'"),
        (lambda state: dict(list(state.items())[1:]), "initial has no 'conv1.weight'"),
        (lambda state: {name: value.long() for name, value in state.items()}, "is whole of shape .* and not floating"),
        (lambda state: {name: value[..., :1] for name, value in state.items() if value.ndim}, "of shape"),
        (lambda state: dict.fromkeys(state, 1), "is int and not floating-point"),
        (lambda state: {name: value.to("meta") for name, value in state.items()}, "no dense tensor"),
        (list, "must be a state dict, but got list"),
    ],
)
def test_values_of_another_network_cannot_be_rewound_to(change, told):
    model = digitsnet()
    with pytest.raises(TopiaristError, match=told) as refused:
        prune(
            model,
            torch.zeros(2, 1, 8, 8),
            topiarist.Pruning.of("l1", 0.5, rewind=True),
            initial=change(model.state_dict()),
        )
    assert "before training" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_is_a_run():
    with pytest.raises(TopiaristError, match=r"run must be a topiarist\.Run, but got \{'seed': 1\}"):
        prune(digitsnet(), torch.zeros(2, 1, 8, 8), "l1", 0.5, run={"seed": 1})
