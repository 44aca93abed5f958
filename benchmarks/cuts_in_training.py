"""Three cuts in the middle of a training: what becomes of the loss, in five ways of handling the optimiser.

    python benchmarks/cuts_in_training.py [--out benchmarks/cuts_in_training]

A small network trains on scikit-learn's digits with AdamW, a cosine schedule and an average of the weights, in float64.
After the epochs of `CUTS` the filters of the smallest L1 norms are removed, until half of each layer is kept. All ways
of a seed begin with the same weights and see the same batches:

- `carry_over`: `topiarist.prune` and `carry_over`, which cuts the state of the optimiser and the average too;
- masks: the whole network, in which `topiarist.attach` holds the same filters at zero; what exact means here;
- new optimiser: the same cut, and then an optimiser and an average that begin again;
- Torch-Pruning: its `MagnitudePruner`, and then an optimiser and an average that begin again;
- Torch-Pruning, by hand: the same, with the state of the optimiser and the average cut by its user.

The ways are in `three_cuts.py`; the page shows the code of the first and the last two as it runs. The first two run in
float32 as well, and the first three at other learning rates. Writes OUT.json, OUT.md and OUT.svg. Needs
`torch-pruning`. It takes about a minute.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import platform
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from three_cuts import (
    ARMS,
    CUTS,
    EPOCHS,
    KEPT,
    RATE,
    WIDTHS,
    Run,
    cut_with_topiarist,
    cut_with_torch_pruning,
    cut_with_torch_pruning_by_hand,
    pruner_of_torch_pruning,
    run,
)

import topiarist
from topiarist.deploy import machine

OTHER_RATES = (0.001, 0.003, 0.03)
"""Run after the results at `RATE` were seen; all that were tried."""
SEEDS = 3
PACKAGES = ("topiarist", "torch", "torch-pruning")
WINDOW = 10
"""Steps after a cut, over which the loss is averaged."""
STYLES = {
    "masks": ("#bbbbbb", "-", 5.0),
    "carry_over": ("#1b7837", "-", 1.4),
    "new optimiser": ("#b2182b", "-", 1.4),
    "Torch-Pruning": ("#2166ac", "--", 1.4),
    "Torch-Pruning, by hand": ("#e08214", ":", 1.8),
}
"""Colour, line and its width."""
SHOWN = {
    "Topiarist": (cut_with_topiarist,),
    "Torch-Pruning, where the optimiser and the average begin again": (pruner_of_torch_pruning, cut_with_torch_pruning),
    "Torch-Pruning, where its user cuts their state by hand": (pruner_of_torch_pruning, cut_with_torch_pruning_by_hand),
}
"""What the page shows, which is what runs."""


def after_cuts(losses: list[float]) -> list[float]:
    """The mean loss of the steps after each cut."""
    each = len(losses) // EPOCHS
    return [mean(losses[epoch * each : epoch * each + WINDOW]) for epoch in CUTS]


def furthest(one: Run, other: Run) -> float:
    """The largest difference between two runs' losses."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def weights_apart(one: Run, whole: Run) -> float:
    """The largest difference between a smaller network's weights and those that masks kept."""
    example = topiarist.load_data("digits").example().to(torch.double)
    graph = topiarist.trace(whole.model, example)
    scores = topiarist.methods.make("l1").score(graph, topiarist.collect(whole.model, graph))
    small = topiarist.cut(whole.model, graph, topiarist.allocate(graph, scores, topiarist.Budget(ratio=KEPT[-1])))
    pairs = zip(one.model.parameters(), small.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def of(runs: list[Run], arm: str, dtype: str = "float64", rate: float = RATE) -> list[Run]:
    """The runs of one way, by seed."""
    return sorted((r for r in runs if (r.arm, r.dtype, r.rate) == (arm, dtype, rate)), key=lambda r: r.seed)


def apart_from_masks(runs: list[Run], arm: str, dtype: str = "float64", rate: float = RATE) -> float:
    """The largest difference between the losses of one way and those of masks, over steps and seeds."""
    pairs = zip(of(runs, arm, dtype, rate), of(runs, "masks", dtype, rate), strict=True)
    return max(furthest(one, other) for one, other in pairs)


def ratios(runs: list[Run], arm: str, rate: float = RATE) -> list[list[float]]:
    """For each cut, the losses after it as fractions of those of masks, by seed."""
    pairs = zip(of(runs, arm, rate=rate), of(runs, "masks", rate=rate), strict=True)
    by_seed = [zip(after_cuts(one.losses), after_cuts(other.losses), strict=True) for one, other in pairs]
    return [[loss / masks for loss, masks in each] for each in zip(*by_seed, strict=True)]


def between(values: list[float], form: str) -> str:
    """The median, and the least and the greatest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(runs: list[Run]) -> list[str]:
    """Losses after the cuts, differences and accuracies."""
    cuts = range(len(CUTS))
    text = [
        f"| way | filters | {' | '.join(f'after cut {at + 1}' for at in cuts)} | furthest from masks |"
        " test, % | average, % |",
        f"|---|---|{'---:|' * (len(CUTS) + 3)}",
    ]
    for arm in ARMS:
        own = of(runs, arm)
        cells = ["–".join(map(str, own[0].widths))]
        for at, each in enumerate(ratios(runs, arm)):
            loss = f"{median(after_cuts(r.losses)[at] for r in own):.3f}"
            cells.append(loss if arm == "masks" else f"{loss}; × {between(each, '.2f')}")
        cells += [f"{apart_from_masks(runs, arm):.1e}" if arm != "masks" else "–"]
        cells += [between([r.accuracy for r in own], ".1f"), between([r.average for r in own], ".1f")]
        text.append(f"| {arm} | {' | '.join(cells)} |")
    return text


def rates_table(runs: list[Run]) -> list[str]:
    """A new optimiser against `carry_over`, at each rate."""
    text = [
        "| rate | new optimiser, after cut 1 | after cut 2 | after cut 3 | carry_over, furthest from masks |"
        " test, %: carry_over | new optimiser |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rate in sorted((RATE, *OTHER_RATES)):
        cells = [f"× {between(each, '.2f')}" for each in ratios(runs, "new optimiser", rate)]
        cells.append(f"{apart_from_masks(runs, 'carry_over', rate=rate):.1e}")
        ends = [of(runs, arm, rate=rate) for arm in ("carry_over", "new optimiser")]
        cells += [between([r.accuracy for r in each], ".1f") for each in ends]
        text.append(f"| {rate:g} | {' | '.join(cells)} |")
    return text


def side_by_side() -> list[str]:
    """The code of each way, as it runs here, with the count of its lines."""
    text = []
    for title, functions in SHOWN.items():
        source = "\n\n\n".join(inspect.getsource(each).rstrip() for each in functions)
        lines = [line.strip() for line in source.splitlines()]
        count = sum(1 for line in lines if line and not line.startswith(("def ", "import ")))
        text += [f"### {title}: {count} lines", "", "```py", source, "```", ""]
    return text


def report(runs: list[Run], apart: float, name: str) -> str:
    """The page."""
    packages = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    every = [r for rate in (RATE, *OTHER_RATES) for each in ratios(runs, "new optimiser", rate) for r in each]
    text = [
        "# Three cuts in one training",
        "",
        f"A network of {'–'.join(map(str, WIDTHS))} filters trains on scikit-learn's digits: AdamW at rate {RATE}, a "
        f"cosine schedule, {EPOCHS} epochs, float64. After epochs {', '.join(map(str, CUTS))} the filters of the "
        "smallest L1 norms are removed, until half of them are kept. All ways begin with the same weights and see the "
        "same batches. *Masks* is the whole network, with the removed filters held at zero: the training that a cut "
        "should continue. Made by `cuts_in_training.py`.",
        "",
        f"{machine()}, one thread; {date.today()}; Python {platform.python_version()}, {packages}; "
        f"seeds {', '.join(map(str, range(SEEDS)))}",
        "",
        f"![The training loss by step, and how far it is from that of the masked network]({name}.svg)",
        "",
        "The picture's upper half has the medians of the seeds, the lower half the largest differences of any seed. "
        "The lines of masks, `carry_over` and Torch-Pruning by hand are one; so are the two of new optimisers.",
        "",
        f"## The loss in the {WINDOW} steps after each cut",
        "",
        f"Mean training loss of these steps, median of {SEEDS} seeds; then its ratio to masks: median (least to "
        "greatest). *Furthest from masks*: the largest difference between two losses of one step, over all steps and "
        "seeds. Accuracy on the 500 test images at the end, of the network and of the average of its weights: median "
        "(least to greatest).",
        "",
        *table(runs),
        "",
        f"`carry_over` trains as masks do: no loss differs by more than {apart_from_masks(runs, 'carry_over'):.1e}, no "
        f"weight at the end by more than {apart:.1e}. In float32 losses differ by at most "
        f"{apart_from_masks(runs, 'carry_over', 'float32'):.1e}. Torch-Pruning with the state cut by hand is as exact "
        f"({apart_from_masks(runs, 'Torch-Pruning, by hand'):.1e}): it cuts the network alike, and lacks the cut of "
        "the state.",
        "",
        "## Is the old state better than none?",
        "",
        "Not in general. The same at other rates, run after the table above was seen; all rates that were tried are "
        "here. Ratios of the loss to masks as above.",
        "",
        *rates_table(runs),
        "",
        f"With a new optimiser the loss after a cut is lower than with the old state in {sum(r < 1 for r in every)} of "
        f"{len(every)} cases (rates × cuts × seeds). So `carry_over` continues the training that was begun, at any "
        "rate. It does not promise a lower loss, and three seeds rank no test accuracies. One small network, one data "
        "set, one optimiser, without a warm-up.",
        "",
        "## What a user writes",
        "",
        "The source of what ran above; the counts are without imports and heads. Torch-Pruning selects the same "
        'filters with `group_reduction="first"`. It cuts weights and gradients. The version by hand fits optimisers of '
        "one parameter group, and averages of networks with batch norms; `average_of` makes an `AveragedModel`.",
        "",
        *side_by_side(),
    ]
    return "\n".join(text).rstrip() + "\n"


def panel(axes: Axes, cuts: list[int]) -> None:
    """Draws what both halves share."""
    for step in cuts:
        axes.axvline(step, color="#999999", lw=0.8, ls="--", zorder=1)
    axes.grid(color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelsize=9)


def draw(runs: list[Run]) -> Figure:
    """The picture: the loss by step, and the distance to that of masks."""
    figure = Figure(figsize=(8.4, 6.0), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    masks = of(runs, "masks")
    cuts = [epoch * len(masks[0].losses) // EPOCHS for epoch in CUTS]
    for arm, (colour, line, width) in STYLES.items():
        own = of(runs, arm)
        middle = [median(each) for each in zip(*(r.losses for r in own), strict=True)]
        upper.plot(middle, color=colour, ls=line, lw=width, label=arm)
        if arm != "masks":
            pairs = [zip(r.losses, m.losses, strict=True) for r, m in zip(own, masks, strict=True)]
            gaps = [max(abs(a - b) for a, b in each) for each in zip(*pairs, strict=True)]
            lower.plot([gap or math.nan for gap in gaps], color=colour, ls=line, lw=width)
    upper.set_yscale("log")
    lower.set_yscale("log")
    for axes in (upper, lower):
        panel(axes, cuts)
    upper.set_ylabel("training loss", fontsize=10)
    lower.set_ylabel("difference from masks", fontsize=10)
    lower.set_xlabel("step; dashed lines are the cuts", fontsize=10)
    upper.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def main() -> None:
    """Trains in every way, and writes the page, the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    out: Path = parser.parse_args().out
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    runs = []
    for seed in range(SEEDS):
        runs += [run(arm, seed) for arm in ARMS]
        runs += [run(arm, seed, torch.float32) for arm in ("masks", "carry_over")]
        runs += [run(arm, seed, rate=rate) for rate in OTHER_RATES for arm in ("masks", "carry_over", "new optimiser")]
        print(f"seed {seed} is done", flush=True)
    if any(each.widths != runs[0].widths for each in runs):
        raise SystemExit("the ways do not keep the same number of filters: their losses cannot be compared")
    pairs = zip(of(runs, "carry_over"), of(runs, "masks"), strict=True)
    apart = max(weights_apart(one, whole) for one, whole in pairs)
    packages = {name: version(name) for name in PACKAGES}
    head = {"machine": machine(), "date": str(date.today()), **packages, "cuts": CUTS, "weights_apart": apart}
    rows = [{key: value for key, value in vars(r).items() if key != "model"} for r in runs]
    out.with_suffix(".json").write_text(json.dumps({**head, "runs": rows}) + "\n")
    out.with_suffix(".md").write_text(report(runs, apart, out.name))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cuts_in_training"}):
        draw(runs).savefig(out.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
