"""The report: what the finished cells say, as plain values and as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import plan
import torch
from plan import Network
from results import Results

import topiarist
from topiarist.studies import Cell, paired, summarise, verdict

Found = dict[str, Any]
WITHIN = 0.1
"""Points of error that a deletion may cost, on held-out images."""


def choice(network: Network, known: Results) -> tuple[float, float] | None:
    """Dropout and weight decay of the fewest mistakes on held-out images; ``None`` until all have been tried."""
    errors = [known[cell.key]["error"] for cell in plan.choices(network) if cell.key in known]
    return network.tried[errors.index(min(errors))] if len(errors) == len(network.tried) else None


def smallest(network: Network, known: Results) -> tuple[float, tuple[str, ...]] | None:
    """Pressure and bits of the smallest file that is accurate enough; ``None`` until all is tried that there is.

    Its held-out error may be above the dense network's by as much as the limit is above the published dense error.
    Where no file is so accurate, those of the least error. Where nothing is tried, there is a file of all bits.
    """
    if (chosen := choice(network, known)) is None:
        return None
    told, cells = network.smallest, plan.records(network, chosen)
    if not cells:
        return told.pressures[0], tuple(map(plan.named, told.bits))
    if any(cell.key not in known for cell in cells):
        return None
    dense = known[plan.dense(network, plan.HELD, 0, *chosen).key]["error"]
    most = dense + network.limit - network.errors[0]
    tries = [
        (each["error"], each["bytes"], pressure, bits)
        for cell, pressure in zip(cells, told.pressures, strict=True)
        for bits, each in known[cell.key]["tries"].items()
    ]
    fine = [each for each in tries if each[0] <= most]
    best = min(fine, key=lambda each: each[1]) if fine else min(tries)
    return best[2], (best[3],)


def gather(network: Network, known: Results, seeds: Iterable[int]) -> Found:
    """Arm → seed → result of the finished cells; and what was tried and chosen."""
    errors = [known.get(cell.key, {}).get("error") for cell in plan.choices(network)]
    found: Found = {"tried": [list(each) for each in network.tried], "held_errors": errors}
    if (chosen := choice(network, known)) is None:
        return found

    def all_of(make: Callable[[int], Cell], seeds: Iterable[int] = tuple(seeds)) -> dict[str, Any]:
        cells = {str(seed): make(seed) for seed in seeds}
        return {seed: known[cell.key] for seed, cell in cells.items() if cell.key in known}

    found["dense"] = all_of(lambda seed: plan.dense(network, plan.WHOLE, seed, *chosen))
    found["sparse"] = all_of(lambda seed: plan.sparse(network, plan.WHOLE, seed, *chosen))
    found["shared"] = all_of(lambda seed: plan.shared(network, plan.WHOLE, seed, *chosen))
    found["merged"] = all_of(lambda seed: plan.merged(network, seed, chosen))
    found["deleted"] = all_of(lambda seed: plan.surgeons(network, seed, chosen))
    found["tickets"] = all_of(lambda seed: plan.tickets(network, seed))
    if tried := plan.records(network, chosen):
        pressures = network.smallest.pressures
        found["record_tried"] = {
            f"{pressure:g}": known[cell.key]["tries"]
            for pressure, cell in zip(pressures, tried, strict=True)
            if cell.key in known
        }
    if (best := smallest(network, known)) is not None:
        cells = all_of(
            lambda seed: plan.record(network, plan.WHOLE, seed, best[0], chosen), range(network.smallest.seeds)
        )
        found["record"] = [(seed, bits, row["tries"][bits], row) for seed, row in cells.items() for bits in best[1]]
    found["gated"] = []
    for method, told in plan.GATED[network.name]:
        gated, after = (make(network, method, told, chosen).key for make in (plan.gated, plan.after))
        if gated in known:
            found["gated"].append((method, told, known[gated] | {"after": known.get(after)}))
    return found


def report(found: Mapping[str, Found], workers: int, threads: int) -> str:
    """All tables."""
    lines = [
        "# Unstructured methods on MNIST's LeNets",
        "",
        "Error in per cent of the 10,000 test images, mean ± standard deviation over the seeds, beside the published "
        "number. Dropout and weight decay were chosen at seed 0 by the error of the pruned network on 10,000 "
        "training images held out for it; everything else was fixed beforehand, but that variational dropout is also "
        "pruned to the published rate, which was added when the error by its own rule on LeNet-300-100 was known, "
        "and that on LeNet-5 the epochs with these zeros, longer variational dropout and weaker L0 gates were added "
        "when the errors of the first were. "
        f"{workers} worker of {threads} thread on {os.cpu_count()} cores ({platform.machine()}); topiarist "
        f"{topiarist.__version__}, torch {torch.__version__}, Python {platform.python_version()}. Made by "
        "`python benchmarks/lenets FOLDER`.",
        "",
    ]
    lines += ["## Magnitude, Deep Compression, random gates", ""]
    lines += [
        "| network | method | seeds | weights left | rate | error | published |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for network in plan.NETWORKS:
        lines += _pipeline(network, found[network.name])
    lines += ["", BASELINES, *_starts(found)]
    for network in plan.NETWORKS:
        here = found[network.name]
        for arm, make in (("deleted", _deleted), ("merged", _merged), ("tickets", _tickets)):
            if here.get(arm):
                lines += ["", *make(network, here[arm])]
    lines += _records(found)
    lines += ["", "## Chosen on held-out images", ""]
    for network in plan.NETWORKS:
        here = found[network.name]
        if not any(here["held_errors"]):
            continue
        told = "; ".join(
            f"dropout {dropout:g}, weight decay {decay:g}: {'–' if error is None else f'{error:.2f} %'}"
            for (dropout, decay), error in zip(here["tried"], here["held_errors"], strict=True)
        )
        lines.append(f"- {network.title}: {told}.")
    return "\n".join([*lines, ""])


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _records(found: Mapping[str, Found]) -> list[str]:
    if not any(each.get("record_tried") for each in found.values()):
        return []
    lines = ["", "## The smallest file", ""]
    lines += [
        "Trained with variational dropout, pruned, shrunk, trained on, shared, and written in one file: names, "
        "shapes and values of all tensors, checksum included. Every byte counts, against the dense network in 32 "
        "bits, and the errors are those of the network that was read back. In brackets: with the architecture, which "
        "says how the small network comes from the whole one.",
        "",
        "LeNet-300-100 is cut by lasso before. Strength and bits are those of the smallest file at seed 0 whose "
        "error on 10,000 held-out images is above the dense network's by no more than the limit is above the "
        "published dense error; that rule came after its files, whose choice it leaves as it was. LeNet-5 starts "
        "from vardrop's network in the table above, pruned to the published rate, with 5 bits. Two tries on held-out "
        "images came before, cut further and not trained before the noise: 8-20-100 units at divergence × 1 gave "
        "1.58 % in 2,037 bytes with 4 bits, 10-20-60 at × 0.5 gave 1.80, 1.67 and 1.56 % in 2,353, 2,508 and 2,681 "
        "bytes with 3, 4 and 5 bits for fc1 and 5 for the others. Neither was accurate enough, and noise left 4 or 5 "
        "of conv2's units; hence the wider start and 5 bits. The files with fewer bits were added when that one was "
        "known.",
        "",
        "Others often count the weights alone. *Symbols* are all coded values without the codebooks, which "
        "take at most two bytes for each of a layer's 2^bits − 1 values. The rate is that of the whole file.",
        "",
        "| network | limit | seed | nonzero | error unshared | bits | error | symbols, bytes | file, bytes | rate "
        "| widths |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---|",
    ]
    for network in plan.NETWORKS:
        for seed, bits, file, record in found[network.name].get("record", ()):
            cells = (
                network.title,
                f"{network.limit} %",
                seed,
                f"{record['nonzero']:,}",
                f"{record['tuned']:.2f}",
                bits,
                f"{file['error']:.2f}",
                f"{file['payload']:,.0f}",
                f"{file['bytes']:,} ({file['with_shape']:,})",
                f"{file['ratio']:.0f}×",
                "-".join(map(str, file["widths"])),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    for network in plan.NETWORKS:
        tried = found[network.name].get("record_tried", {})
        told = "; ".join(
            f"divergence × {pressure}, {bits} bits: {each['error']:.2f} % in {each['bytes']:,} bytes"
            for pressure, tries in tried.items()
            for bits, each in tries.items()
        )
        if told:
            lines += ["", f"Tried for {network.title} on held-out images: {told}."]
    return lines + _known_files()


def _known_files() -> list[str]:
    """Smallest files of others, and how these numbers are known."""
    header = ["| network | method | rate | error, % | bytes | known from |", "|---|---|---:|---:|---:|---|"]
    rows = [f"| {' | '.join(row)} |" for row in KNOWN_FILES]
    return ["", "The smallest files of others that are known to us:", "", *header, *rows, "", KNOWN_FILES_SUMMARY]


def _pipeline(network: Network, found: Found) -> list[str]:
    lines = []
    dense, magnitude, shared = network.errors

    def line(method: str, rows: list[Found], left: str, rate: str, published: str) -> None:
        errors = str(summarise([row["error"] for row in rows]))
        lines.append(f"| {network.title} | {method} | {len(rows)} | {left} | {rate} | {errors} | {published} |")

    if rows := list(found.get("dense", {}).values()):
        line("dense", rows, "100 %", "1×", f"{dense} %")
    if rows := list(found.get("sparse", {}).values()):
        left = summarise([row["kept"] for row in rows]).mean
        line(
            "magnitude",
            rows,
            f"{100 * left:.2f} %",
            f"{1 / left:.1f}× weights",
            f"{magnitude} % at {network.rates[0]}×",
        )
    if rows := list(found.get("shared", {}).values()):
        left = summarise([row["kept"] for row in rows]).mean
        told = f"{shared} % at {network.rates[1]}×"
        for mode, title in (("paper", "Deep Compression, the paper's format"), ("ans", "Deep Compression, our codec")):
            size = summarise([row[f"{mode}_bytes"] for row in rows]).mean
            rate = rows[0]["dense_bytes"] / size
            line(title, rows, f"{100 * left:.2f} %", f"{rate:.1f}× bytes ({size:,.0f} B, whole file)", told)
    for method, told, row in found.get("gated", ()):
        fields = (f", {name} {value:g}" for name, value in told["fields"].items())
        title = f"{method}{''.join(fields)}, {told['recipe']['epochs']} epochs"
        more = f"{network.smallest.epochs[1]} epochs with these zeros"
        stages = {title: row, f"{title}, to the published rate": row.get("at_rate"), more: row.get("after")}
        for each, result in stages.items():
            if result is not None:
                widths = "-".join(map(str, _widths(result))) if method == "l0" else ""
                rate = f"{1 / result['kept']:.1f}× weights" + (f", widths {widths}" if widths else "")
                line(each, [result], f"{100 * result['kept']:.2f} %", rate, GATED[network.name, method])
    return lines


def _starts(found: Mapping[str, Found]) -> list[str]:
    """From where the methods with gates trained, and how long."""
    told = []
    for network in plan.NETWORKS:
        for method, settings, _ in found[network.name].get("gated", ()):
            if method == "l0":
                told.append(L0_NOTE)
            if widths := settings.get("widths"):
                kept = ", ".join(f"{100 * fraction:g} % of {name}" for name, fraction in widths.items())
                told.append(
                    f"{method} of {network.title} starts from a trained network that lasso cut to {kept}, and that "
                    f"trained {settings['cut']['epochs']} epochs more; the rate is of the whole network's weights."
                )
    return ["", " ".join(["In their papers random gates train 200 epochs.", *dict.fromkeys(told)])]


def _widths(result: dict[str, Any]) -> list[int]:
    """Returns the kept channels of both convolutions, inputs of the first linear layer, and its units."""
    conv1, conv2, units = result["widths"].values()
    return [conv1, conv2, round(result["layers"]["fc1.weight"] * FC1 / units), units]


FC1 = 800 * 500
"""Weights of LeNet-5's first linear layer: flattened features times units."""
L0_NOTE = "l0 gates the network's inputs, units and the 800 flattened features, and counts each parameter once."
BASELINES = (
    "The dense networks are better than the papers' (see their rows), so the errors of all methods start ahead. Deep "
    "Compression's published rates are those of the paper's format; our codec codes the same weights in fewer bytes."
)
GATED = {
    ("lenet300", "vardrop"): "1.92 % at 68×",
    ("lenet5", "vardrop"): "0.75 % at 280×",
    ("lenet5", "l0"): "0.9 % at 20-25-45-462",
}
"""Network and method → what its paper reports."""


SPARSE_VD = "sparse variational dropout, as in Louizos et al. 2017"
REPARAMETERISED = "entropy-penalised reparameterisation (Oktay et al. 2020)"
MIRACLE = "MIRACLE (Havasi et al. 2019)"
MIRACLE_AGAIN = "MIRACLE, a public re-implementation"
KNOWN_FILES = (
    ("LeNet-300-100", "Deep Compression (Han et al. 2016)", "40×", "1.58", "27 K", "paper"),
    ("LeNet-300-100", SPARSE_VD, "113×", "1.8", "", "memory"),
    ("LeNet-300-100", REPARAMETERISED, "124×", "1.9", "8.56 K", "table of a public tutorial"),
    ("LeNet-5", "Deep Compression (Han et al. 2016)", "39×", "0.74", "44 K", "paper"),
    ("LeNet-5", "Bayesian compression (Louizos et al. 2017)", "771×", "1.0", "", "second hand"),
    ("LeNet-5", REPARAMETERISED, "606×", "1.0", "2.84 K", "table of a public tutorial"),
    ("LeNet-5", MIRACLE, "555×", "0.69", "3.10 K", "read off its figure"),
    ("LeNet-5", MIRACLE, "665×", "0.79", "2.59 K", "read off its figure"),
    ("LeNet-5", MIRACLE, "765 to 885×", "0.87", "1.95 to 2.25 K", "read off its figure"),
    ("LeNet-5", MIRACLE, "1,050 to 1,110×", "0.96", "1.6 K", "read off its figure"),
    ("LeNet-5", MIRACLE_AGAIN, "1,018×", "0.83", "1,694", "file; error claimed by its author"),
    ("LeNet-5", MIRACLE_AGAIN, "1,512×", "0.98", "1,140", "file; error claimed by its author"),
)
"""Network, method, rate, error, size and source."""
KNOWN_FILES_SUMMARY = (
    "Our LeNet-300-100 is smaller than the best of these, at a lower error. Our smallest LeNet-5, of one seed, is no "
    "record: MIRACLE reads about the same, and a re-implementation of it claims a smaller file at a lower error."
)


def _deleted(network: Network, rows: Mapping[str, Found]) -> list[str]:
    lines = [f"## Weights deleted by curvature: {network.title}", ""]
    lines += [
        f"Trained on 50,000 images, {_seeds(len(rows))}; curvature from {plan.SURGEON_IMAGES:,} of them. OBS works "
        "layer by layer. Test error by the fraction of weights that stays, with no training afterwards; dense "
        f"{summarise([row['dense'][1] for row in rows.values()])}.",
        "",
        "| method | " + " | ".join(f"{100 * kept:g} %" for kept in plan.DELETED) + " |",
        "|---|" + "---:|" * len(plan.DELETED),
    ]
    for name in plan.SURGEONS:
        means = [summarise([row["test"][name][at] for row in rows.values()]).mean for at in range(len(plan.DELETED))]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    lines += ["", f"The most weights that can be deleted at no more than {WITHIN} points on the held-out images:", ""]
    for name in plan.SURGEONS:
        least = [_least(row, name) for row in rows.values()]
        deleted = summarise([100 * (1 - plan.DELETED[at]) for at in least])
        rise = [row["test"][name][at] - row["dense"][1] for row, at in zip(rows.values(), least, strict=True)]
        lines.append(f"- {name}: {deleted} % of the weights deleted; test error {summarise(rise)} points above dense.")
    lines += [
        "",
        f"With {100 * plan.TRAINED_ON:g} % of the weights left, as LeCun et al. (1989) leave of theirs, and "
        f"{network.epochs[1]} more epochs:",
        "",
    ]
    for name in (*plan.SURGEONS, "dense"):
        after = [row["trained"][name][1] for row in rows.values()]
        rise = [error - row["dense"][1] for error, row in zip(after, rows.values(), strict=True)]
        lines.append(f"- {name}: {summarise(after)} %, {summarise(rise)} points above dense before them.")
    return lines


def _least(row: Found, name: str) -> int:
    """Where the fewest weights stay at an error that was asked for; at all that are denser it holds as well."""
    fine = [error <= row["dense"][0] + WITHIN for error in row["held"][name]]
    return max(0, (fine.index(False) if False in fine else len(fine)) - 1)


def _merged(network: Network, rows: Mapping[str, Found]) -> list[str]:
    lines = [f"## Neurons merged without data: {network.title}", ""]
    dense = summarise([row["dense"] for row in rows.values()])
    lines += [
        f"No data and no training afterwards; {_seeds(len(rows))}. Test error by the fraction of neurons that stays"
        f"{'' if network.name == 'lenet300' else ' in the linear layers'}; dense {dense}. `merged` is Srinivas & "
        "Babu's method, `cut` the same neurons merely removed.",
        "",
        "| neurons kept | parameters kept | merged | cut | l1 | random |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for at, kept in enumerate(plan.MERGED):
        left = summarise([row["merged"][at][0] for row in rows.values()]).mean
        errors = [
            str(summarise([row[arm][at][1] for row in rows.values()])) for arm in ("merged", "cut", "l1", "random")
        ]
        lines.append(f"| {100 * kept:g} % | {100 * left:.1f} % | {' | '.join(errors)} |")
    left = summarise([100 * row["mode"][0] for row in rows.values()])
    error = summarise([row["mode"][1] for row in rows.values()])
    return [*lines, "", f"Cut where the mode of the saliencies says: {left} % of the parameters stay, error {error}."]


def _tickets(network: Network, rows: Mapping[str, Found]) -> list[str]:
    lines = [f"## Lottery tickets: {network.title}", ""]
    lines += [
        f"{plan.TICKET_EPOCHS} epochs of Adam a round, a fifth of the weights a round; {_seeds(len(rows))}; dense "
        f"{summarise([row['dense'] for row in rows.values()])}.",
        "",
        "| weights left | rewound | other initial weights | difference |",
        "|---:|---:|---:|---|",
    ]
    for number in sorted(plan.TICKETS):
        key = str(number)
        arms = {arm: {int(s): row[arm][key] for s, row in rows.items()} for arm in ("ticket", "other")}
        left = summarise([100 * row["left"][key] for row in rows.values()]).mean
        told = verdict("rewound", "other initial weights", paired(arms["other"], arms["ticket"]))
        cells = (f"{left:.1f} %", *(str(summarise(list(arm.values()))) for arm in arms.values()), told)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
