"""What the report draws and says: histograms of scores, maps of kernels, pooled differences, Markdown."""

import base64
import hashlib
import json
import re
from statistics import fmean

import pytest
import torch

from report_results import KERNELS, large_results, make_results, row
from topiarist import Budget, Pruning, load_data, load_model, prune
from topiarist.architecture import SHAPE_FILE, Architecture
from topiarist.pruning import Choice
from topiarist.report import arm_styles, figures, formatting, render, write_report
from topiarist.report.explanations import how
from topiarist.report.tables import arms_table
from topiarist.studies import ARMS, Study, gather, run_cells
from topiarist.studies.cells import folder, result, unfold
from topiarist.studies.comparisons import pool
from topiarist.studies.conclusion import conclude
from topiarist.studies.histogram import histogram
from topiarist.studies.work import work

NETWORK = "zoo:digitsnet?width=0.25"


# ---------------------------------------------------------------- scores


def choice(scores, cut):
    return Choice({name: values >= cut[name] for name, values in scores.items()}, scores)


def counted(found):
    return sum(found["kept"]), sum(found["removed"])


SPREADS = {
    "even": lambda: torch.rand(400, dtype=torch.float64),
    "heavy": lambda: torch.randn(400, dtype=torch.float64).exp() ** 4,
    "signed": lambda: torch.randn(400, dtype=torch.float64),
    "ties": lambda: torch.randint(0, 3, (400,)).double(),
    "endless": lambda: torch.cat([torch.full((9,), -torch.inf), torch.rand(390), torch.tensor([torch.inf])]).double(),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("apart", [False, True], ids=["one cut", "a cut for each group"])
def test_a_histogram_counts_every_unit_and_has_the_cut_on_an_edge(spread, apart):
    torch.manual_seed(0)
    scores = {"a": SPREADS[spread](), "b": SPREADS[spread]() * (10 if apart else 1)}
    where = {
        name: float(v[v.isfinite()].quantile(0.6 if name == "a" else 0.3 if apart else 0.6))
        for name, v in scores.items()
    }
    cut = where if apart else dict.fromkeys(scores, where["a"])
    made = choice(scores, cut)
    found = histogram(made)
    stay = sum(int(keep.sum()) for keep in made.keep.values())
    assert counted(found) == (stay, 800 - stay)
    assert len(found["edges"]) == len(found["kept"]) + 1 == len(found["removed"]) + 1
    assert found["cut"] in found["edges"]
    assert found["edges"] == sorted(set(found["edges"]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("spread", ["even", "heavy", "signed"])
@pytest.mark.parametrize("factor", [1.0, 25.0])
def test_what_is_removed_lies_below_the_cut_and_what_stays_above(spread, factor):
    torch.manual_seed(1)
    scores = {"a": SPREADS[spread](), "b": SPREADS[spread]() * factor}
    cut = {"a": float(scores["a"].quantile(0.7)), "b": float(scores["a"].quantile(0.7)) * factor}
    found = histogram(choice(scores, cut))
    at = found["edges"].index(found["cut"])
    assert sum(found["removed"][at:]) == sum(found["kept"][:at]) == 0
    assert found["to"] == ("" if factor == 1 else "difference" if spread == "signed" else "ratio")


@pytest.mark.parametrize(("method", "steps"), [("l1", 1), ("magnitude", 1), ("magnitude", 2)])
def test_a_pruning_keeps_its_scores(method, steps):
    torch.manual_seed(0)
    data, model = load_data("digits?train=200"), load_model(NETWORK)
    done = prune(model, data.example(), Pruning.of(method, Budget(ratio=0.5), steps=steps), data=data)
    units = sum(len(values) for values in done.choice.scores.values())
    kept, removed = counted(histogram(done.choice))
    assert kept + removed == units
    assert kept == sum(int(done.keep[name].sum()) for name in done.choice.scores)
    assert (units == sum(group.units for group in done.graph.groups)) == (
        steps == 1
    )  # the last cut's, of what was left


def test_a_method_that_selects_without_scores_has_no_histogram():
    torch.manual_seed(0)
    data, model = load_data("digits?train=200"), load_model(NETWORK)
    done = prune(model, data.example(), "thinet", Budget(ratio=0.5), data=data)
    assert dict(done.choice.keep).keys() == done.keep.keys()
    assert histogram(done.choice) is None


# ---------------------------------------------------------------- maps


def test_cells_hold_scores_and_the_fraction_kept_at_each_position(tmp_path):
    recipe = {"epochs": 0}
    study = Study.of(
        {
            "network": NETWORK,
            "data": "digits?train=200",
            "prunings": [
                {"method": "magnitude", "budget": {"ratio": 0.3}},
                {"method": "thinet", "budget": {"ratio": 0.5}},
            ],
            "seeds": 2,
            "recipe": recipe,
            "finetune": recipe,
            "arms": ["finetune"],
        }
    )
    assert run_cells(study.cells(), tmp_path, work).ok
    rows = {(each["method"], each["arm"]): each for each in gather(study, tmp_path)["rows"]}
    sparse, structure = rows["magnitude", "pruned"], rows["thinet", "pruned"]
    assert (structure["kernels"], structure["scores"]) == ({}, None)
    assert rows["magnitude", "finetune"]["kernels"] == {}
    cells = [cell for cell in unfold(study.cells()) if (cell.method, cell.arm) == ("magnitude", "pruned")]
    by_hand: dict[str, list[torch.Tensor]] = {}
    for cell in cells:
        architecture = Architecture.load(folder(tmp_path, cell) / SHAPE_FILE)
        for group in architecture.groups:
            shape = architecture.shapes[group.slices[0].tensor]
            if len(shape) == 4:
                by_hand.setdefault(group.stage, []).append(architecture.keep[group.name].view(-1, shape[2], shape[3]))
    for stage, masks in by_hand.items():
        wanted = torch.cat(masks).double().mean(0).flatten().tolist()
        assert sparse["kernels"][stage]["3x3"] == pytest.approx(wanted, abs=1e-12)
    first = result(tmp_path, cells[0])
    assert sparse["scores"] == {"seed": 0, **first["scores"]}
    assert sum(counted(first["scores"])) == sum(units for _, units in first["widths"].values())
    assert counted(first["scores"])[0] == sum(kept for kept, _ in first["widths"].values())


def test_maps_tell_the_per_cent_kept_at_each_position():
    text = figures.kernels(KERNELS, "kernels")
    told = re.findall(r">([\d.]+)</text>", text)
    assert told == ["10", "20", "10", "20", "90", "20", "10", "20", "10", "25"]
    assert "3×3 on 8×8" in text
    assert "linear" in text


# ---------------------------------------------------------------- differences over all prunings


def with_seeds(method, arm, seeds, network="n"):
    return row(method, "50 %", "finetune", 0.0, 0.5) | {
        "arm": arm,
        "network": network,
        "accuracy": {
            "mean": fmean(seeds),
            "std": 0.1,
            "n": len(seeds),
            "seeds": {str(s): v for s, v in enumerate(seeds)},
        },
    }


def rows_of(gains):
    """Rows in which fine-tuning gains so much over Scratch-B, by method and seed."""
    rows = [with_seeds("none", "unpruned", [95.0, 95.0, 95.0])]
    for method, values in gains.items():
        rows += [
            with_seeds(method, "finetune", [90 + gain for gain in values]),
            with_seeds(method, "scratch_b", [90.0] * len(values)),
        ]
    return rows


def test_a_pooled_difference_is_that_of_the_means_at_each_seed():
    gains = {"l1": [1.0, 2.0, 3.0], "slimming": [0.0, 0.0, 3.0]}
    every, l1, slimming = pool(rows_of(gains), [("finetune", "scratch_b")])
    assert [each["method"] for each in (every, l1, slimming)] == ["", "l1", "slimming"]
    assert [each["prunings"] for each in (every, l1, slimming)] == [2, 1, 1]
    # of 0.5, 1 and 3: mean 1.5, deviation 1.3229, t(2; 0.975) = 4.3027
    half = 4.302653 * 1.322876 / 3**0.5
    assert every["mean"] == pytest.approx(1.5)
    assert (every["low"], every["high"]) == pytest.approx((1.5 - half, 1.5 + half), abs=1e-5)
    assert every["n"] == 3
    assert l1["mean"] == pytest.approx(2.0)


def test_only_seeds_that_all_prunings_have_are_pooled():
    every = next(pool(rows_of({"l1": [1.0, 2.0, 3.0], "slimming": [0.0, 1.0]}), [("finetune", "scratch_b")]))
    assert every["n"] == 2
    assert every["mean"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        (
            [1.0, 1.1, 1.2],
            "Fine-tuning was worth more than training the pruned shape from scratch: fine-tuning outperforms",
        ),
        (
            [-1.0, -1.1, -1.2],
            "Fine-tuning was worth less than training the pruned shape from scratch: Scratch-B outperforms",
        ),
        ([1.0, -1.1, 0.2], "Whether fine-tuning was worth more than training the pruned shape from scratch is open"),
        (
            [1.0],
            "is open: no significant difference between fine-tuning and Scratch-B: one seed gives no interval (+1.00",
        ),
    ],
)
def test_the_conclusion_answers_the_question(gains, told):
    pooled = list(pool(rows_of({"l1": gains, "fpgm": gains}), [("finetune", "scratch_b")]))
    (sentence,) = conclude([], pooled, {})
    assert told in sentence
    assert sentence.endswith("on average over 2 prunings.")


@pytest.mark.parametrize(
    ("guided", "told"),
    [
        (91.0, "in 1 of 1 prunings."),
        (89.0, "in 0 of 1 prunings; it is below the uniform network in 1, and above Scratch-B in 0."),
        (93.0, "in 0 of 1 prunings; it is below the uniform network in 0, and above Scratch-B in 1."),
    ],
)
def test_designed_shapes_are_placed_between_uniform_and_direct(guided, told):
    rows = [
        with_seeds("none", "unpruned", [95.0, 95.1]),
        with_seeds("slimming", "scratch_b", [92.0, 92.1]),
        with_seeds("slimming", "uniform", [90.0, 90.1]),
        with_seeds("slimming", "guided", [guided, guided + 0.1]),
    ]
    pairs = [("guided", "uniform"), ("guided", "scratch_b")]
    pooled = list(pool(rows, pairs))
    comparisons = [
        {**entry, "network": "n", "data": "digits", "goal": "50 %", "when": ""} for entry in pooled if entry["method"]
    ]
    sentences = conclude(comparisons, pooled, {})
    assert sentences[-1] == f"The mean of the guided pattern lies between the uniform network and Scratch-B {told}"


# ---------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with the report of a large study."""
    return write_report(tmp_path_factory.mktemp("report"), large_results()).parent


def test_markdown_has_the_numbers_of_the_results(large):
    results, text = large_results(), (large / "report.md").read_text(encoding="utf-8")
    for sentence in [*results["conclusion"], results["note"]]:
        assert plain(sentence) in plain(text)
    lines = text[text.index("## All arms") :].split("\n\n")[2].splitlines()
    table = [[plain(cell.strip()) for cell in line.strip("|").split(" | ")] for line in lines]
    heads, body = table[0], table[2:]
    assert len(body) == len(results["rows"])
    for line, one in zip(body, results["rows"], strict=True):
        shown = dict(zip(heads, line, strict=True))
        assert shown["Network"] == one["network"]
        assert shown["Arm"] == one["label"]
        assert shown["Accuracy, %"] == formatting.accuracy(one["accuracy"])
        assert shown["MACs"] == f"{formatting.count(one['macs'])} {formatting.percent(one['macs_ratio'])}"
        assert shown["Published, %"] == ("93.63 a" if one["method"] == "none" else "")
        assert shown["Seeds"] == str(one["accuracy"]["n"])


def plain(text):
    return text.replace("\\", "")


@pytest.mark.usefixtures("blank_figures")
def test_names_mean_nothing_in_markdown(tmp_path):
    write_report(tmp_path, make_results("<b>|`a`*_[x](y)"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert r"\<b\>\|\`a\`\*\_\[x\](y)" in text


@pytest.mark.usefixtures("blank_figures")
def test_published_numbers_have_a_column_only_where_there_are_any():
    assert "Published" not in render(make_results())
    results = make_results()
    results["rows"][0]["published"] = {"accuracy": 93.41, "spread": 0.12, "source": "Liu et al. 2019, Table 1"}
    text = render(results)
    assert "Published, %" in text
    assert "93.41 ± 0.12" in text
    assert "Liu et al. 2019, Table 1" in text
    for entry, source in zip(results["rows"], ("one", "two", "one"), strict=False):
        entry["published"] = {"accuracy": 90.0, "source": source}
    table = arms_table(results)
    assert table.notes == {"a": "one", "b": "two"}
    assert [line.cells[table.heads.index("Published, %")].small for line in table.lines[:3]] == ["a", "b", "a"]


def test_the_page_runs_its_own_script_and_nothing_else(large):
    text = (large / "report.html").read_text(encoding="utf-8")
    (code,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.search(r"<[^>]+\son\w+\s*=", text.replace(code, ""))


def test_every_figure_has_a_caption(large):
    figures_ = re.findall(r"<figure.*?</figure>", (large / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert len(figures_) > 20
    assert all(figure.count("<figcaption>") == 1 and figure.count("<svg") == 1 for figure in figures_)


def test_arms_differ_in_colour_and_mark():
    found = arm_styles.styles([*ARMS, "new", "newer"])
    for name in ("name", "mark", "outline", "light", "dark"):
        assert len({getattr(each, name) for each in found.values()}) == len(found)
    results = make_results()
    results["rows"] += [results["rows"][-1] | {"arm": arm} for arm in found]
    page = render(results)
    assert all(page.count(f"--{each.variable}: #") == 2 for each in found.values())  # light and dark


def test_an_arm_that_nobody_knows_is_shown():
    results = make_results()
    results["rows"].append(results["rows"][-1] | {"arm": "espalier", "label": "Espalier"})
    text = render(results)
    assert "Espalier" in text
    assert "var(--spare-1)" in text


def test_what_is_pooled_is_of_one_kind():
    """A pruned shape is not averaged over uniform widths and uniform sparsity, nor compared with itself."""
    row = {"network": "n", "data": "d", "goal": "half", "label": "Scratch-B", "widths": {"conv": [1, 2]}}

    def rows(method, label, shift, widths):
        seeds = {"0": 90.0, "1": 91.0}
        other = {seed: value + shift for seed, value in seeds.items()}
        yield {**row, "method": method, "arm": "scratch_b", "accuracy": {"seeds": seeds}}
        yield {
            **row,
            "method": method,
            "arm": "uniform",
            "label": label,
            "accuracy": {"seeds": other},
            "widths": widths,
        }

    plain = {**row, "method": "none", "arm": "unpruned", "accuracy": {"seeds": {}}}
    alike = rows("l1", "uniform widths", 0.0, {"conv": [1, 2]})
    found = rows("slimming", "uniform widths", -1.0, {"conv": [2, 2]})
    sparse = rows("magnitude", "uniform sparsity", -3.0, {"conv": [2, 2]})

    def told(*parts):
        every = [plain, *(each for part in parts for each in part)]
        return {entry["method"]: entry["mean"] for entry in pool(every, [("scratch_b", "uniform")])}

    kinds = list(found), list(sparse)
    assert told(list(alike), kinds[0]) == {"": 1.0, "slimming": 1.0}
    assert told(*kinds) == {"slimming": 1.0, "magnitude": 3.0}


@pytest.mark.parametrize(("arms", "named", "silent"), [
    (("lottery", "lottery_random"), ("Lottery ticket", "Random ticket"), ("Scratch", "Uniform", "Fine-tuned")),
    (("finetune", "scratch_e"), ("Fine-tuned", "Scratch-E"), ("Scratch-B", "Lottery", "cap")),
])  # fmt: skip
def test_only_the_arms_that_there_are_are_explained(arms, named, silent):
    text = how(arms)
    assert all(word in text for word in named)
    assert not any(word in text for word in silent)
