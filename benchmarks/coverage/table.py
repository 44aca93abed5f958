"""The page: a summary, wins and losses, and a line for each network."""

from __future__ import annotations

from collections import Counter
from typing import Any

RATIOS = ("0.67", "0.5", "0.33")
SLOW, LARGE = 20.0, 4.0
KINDS = {"timm": "timm", "torchvision": "torchvision", "transformers": "transformers", "own": "networks of one idea"}
USUAL = ("the example input", "twice the batch", "training mode")

Row = dict[str, Any]


def fault(row: Row) -> str:
    """What keeps a network from being exact; empty where it is."""
    ours = row["ours"]
    if ours.get("groups") == 0:
        return "nothing to prune"
    for ratio in RATIOS:
        found = ours.get(ratio)
        if found is None:
            return ours.get("error", "no result")
        if not (found["ok"] and found["diff"] <= found["tolerance"]):
            return f"{float(ratio):.0%}: {found['reason'] or found['diff']}"
    return ""


def exact(row: Row) -> bool:
    return not fault(row)


def macs(row: Row) -> float | None:
    return row["ours"].get("0.5", {}).get("macs")


def seconds(row: Row) -> float | None:
    ours = row["ours"]
    return ours["trace_s"] + ours["proof_s"] if "proof_s" in ours else None


def peer_fate(row: Row) -> str:
    """ "right", or what is wrong with the peer's result."""
    peer = row["peer"]
    if peer.get("fate") != "runs":
        return peer.get("fate") or peer.get("error", "no result")
    if peer.get("right") == "equal":
        return "right"
    return peer.get("right") or peer.get("error", "no comparison")


def peer_runs(row: Row) -> bool:
    return row["peer"].get("fate") == "runs"


def missing_paths(row: Row) -> list[str]:
    """The usual ways on which cut and mask could not be compared, since the network itself does not take them."""
    taken = row["ours"].get("0.5", {}).get("paths", [])
    return [way for way in USUAL if way not in taken] if exact(row) else []


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cell(text: str, length: int = 90) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def line(row: Row) -> str:
    ours, peer = row["ours"], row["peer"]
    whole = ours.get("whole", {})
    reasons = "; ".join(f"{why} ({n})" for why, n in whole.get("reasons", [])[:2])
    kept = f"{whole['whole']} of {whole['weights']}" + (f": {reasons}" if reasons else "") if whole else "–"
    cells = [
        row["network"],
        "yes" if exact(row) else _cell(fault(row)),
        _number(macs(row)),
        _number(ours.get("trace_s"), 1),
        _number(ours.get("proof_s"), 1),
        _number(ours.get("peak_gb")),
        _cell(kept, 110),
        _cell(peer_fate(row), 70),
        _number(peer.get("macs")),
        _number(peer.get("seconds"), 1),
    ]
    return f"| {' | '.join(cells)} |"


HEADER = [
    "| network | exact | MACs | trace s | proof s | GB | weights not pruned | Torch-Pruning | its MACs | its s |",
    "|---|---|---:|---:|---:|---:|---|---|---:|---:|",
]


def page(head: Row, rows: list[Row]) -> str:
    lines = [
        "# Coverage",
        "",
        *summary(rows),
        "",
        *by_kind(rows),
        "",
        *about(head),
        "",
        *losses(rows),
        "",
        *fates(rows),
        "",
    ]
    lines += ["## Every network", "", *HEADER, *map(line, rows), "", "## What is not pruned", "", *reasons(rows)]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row]) -> list[str]:
    good = [row for row in rows if exact(row)]
    right = [row for row in rows if peer_fate(row) == "right"]
    return [
        f"**{len(rows)} networks. Exact at all three ratios: {len(good)}. MACs below 0.5 with half of the units: "
        f"{sum((macs(r) or 1) < 0.5 for r in good)}. Above {SLOW:.0f} CPU seconds: "
        f"{sum((seconds(r) or 0) > SLOW for r in rows)}; above {LARGE:.0f} GB: "
        f"{sum(r['ours'].get('peak_gb', 0) > LARGE for r in rows)}. "
        f"Torch-Pruning: its result runs on {sum(map(peer_runs, rows))}, and is right on {len(right)}.**",
    ]


def by_kind(rows: list[Row]) -> list[str]:
    lines = ["| | networks | exact | MACs below 0.5 | Torch-Pruning runs | right |", "|---|---:|---:|---:|---:|---:|"]
    for kind, title in KINDS.items():
        some = [row for row in rows if row["network"].partition(":")[0] == kind]
        counts = [
            len(some),
            sum(map(exact, some)),
            sum(exact(row) and (macs(row) or 1) < 0.5 for row in some),
            sum(map(peer_runs, some)),
            sum(peer_fate(row) == "right" for row in some),
        ]
        lines.append(f"| {title} | {' | '.join(map(str, counts))} |")
    return lines


ABOUT = """\
Exact: the cut equals the mask in float64, to 10⁻¹⁰ (RAFT takes float32 alone: to 10⁻⁴), with 67 %, 50 % and 33 % of
each group's units, chosen at random: on the example, at twice the batch, at another size or length where the network
takes it, and in training mode. Every run begins with the same random numbers; where a network casts to float32 by
itself, and differs by that much, it is compared without these casts. MACs are the fraction kept, at 50 %. Seconds are
CPU seconds of one thread, proof s those of three proofs. GB is the peak of memory above that of the process before
tracing. Weights not pruned lose nothing on any axis.

Torch-Pruning halves the same network by the L1 norm, with the settings of its own examples: heads of attention, and
layers to ignore that make the outputs. Runs: its result gives finite outputs of the old shapes, and has fewer
parameters. Not comparable: its weights are no selection of the original ones. Right: its result equals the original
network in which the removed positions are masked, to 10⁻⁶ on the example. Norms of the masked network run over what is
kept. Where that is not enough, Topiarist's mask is asked too, and one agreement counts. A scale of attention that
follows the smaller heads is a difference, which training may repair.

Each side has 60 CPU seconds and 10 GiB for a network. Weights are random; no network has more than 100 million of
them. Those of transformers are small configurations of the real structure."""
STAND_INS = """
torchvision's compiled operators could not be loaded here: nms, roi_align and deform_conv2d are stand-ins of the same
names and schemas, written with torch's operators."""


def about(head: Row) -> list[str]:
    names = ("topiarist", "torch-pruning", "torch", "torchvision", "timm", "transformers", "python")
    versions = ", ".join(f"{name} {head[name]}" for name in names)
    return [
        ABOUT + (STAND_INS if head["stand_ins"] else ""),
        "",
        f"Machine: {head['processor']}, {head['cores']} cores. Versions: {versions}. Made by `coverage/`.",
    ]


def _listed(title: str, names: list[str]) -> str:
    return f"- {title}: {len(names)}{'. ' + ', '.join(names) if names else ''}."


def losses(rows: list[Row]) -> list[str]:
    """Where Topiarist does not do what it should, or the peer does it better."""
    good = [row for row in rows if exact(row)]
    right = [row for row in rows if peer_fate(row) == "right"]
    both = [row for row in right if exact(row)]
    wide = [f"{row['network']} ({macs(row):.2f})" for row in good if (macs(row) or 0) >= 0.5]
    slow = [f"{row['network']} ({seconds(row):.0f} s)" for row in rows if (seconds(row) or 0) > SLOW]
    large = [
        f"{row['network']} ({row['ours']['peak_gb']:.1f} GB)" for row in rows if row["ours"].get("peak_gb", 0) > LARGE
    ]
    fewer = [r["network"] for r in both if r["peer"].get("macs", 1) < (macs(r) or 0) - 0.02]
    faster = [r["network"] for r in both if r["peer"]["seconds"] < r["ours"]["trace_s"]]
    unclear = [r["network"] for r in good if not r["ours"].get("reference", 1) <= 10 * r["ours"]["0.5"]["tolerance"]]
    ways = Counter(way for row in good for way in missing_paths(row))
    return [
        "## Losses",
        "",
        _listed("Not exact", [f"{row['network']} ({_cell(fault(row), 60)})" for row in rows if not exact(row)]),
        _listed("Exact, but MACs of 0.5 or more", wide),
        _listed(f"Above {SLOW:.0f} CPU seconds, trace and three proofs", slow),
        _listed(f"Above {LARGE:.0f} GB", large),
        _listed("Torch-Pruning is right where Topiarist is not exact", [r["network"] for r in right if not exact(r)]),
        _listed("Both right, Torch-Pruning with fewer MACs by more than 0.02", fewer),
        _listed("Both right, Torch-Pruning faster than our trace", faster) + " It has no proof.",
        _listed("The reference of the proof table, which is independent of the mask, differs", unclear)
        + f" It agrees on {len(good) - len(unclear)}. It masks torch's norms only.",
        "- Paths not compared, since the network itself fails on them: "
        + (", ".join(f"{way} on {count}" for way, count in ways.most_common()) or "none")
        + ".",
    ]


def fates(rows: list[Row]) -> list[str]:
    """What became of the peer's runs."""
    kinds = Counter(_kind(peer_fate(row)) for row in rows)
    again = [row["network"] for row in rows if peer_fate(row) == "right" and row["peer"].get("again") is False]
    lines = ["## Torch-Pruning", ""]
    lines += [f"- {kind}: {count}" for kind, count in kinds.most_common()]
    return [*lines, "", _listed("Right on the example, but its result fails at the other size", again)[2:]]


def _kind(fate: str) -> str:
    """A fate without its message."""
    return "differs" if fate.startswith("differs") else fate.partition(":")[0]


def reasons(rows: list[Row]) -> list[str]:
    """The reasons over all networks, by the number of networks."""
    found = Counter(why for row in rows for why, _ in row["ours"].get("whole", {}).get("reasons", []))
    unknown = Counter(name for row in rows for name in row["ours"].get("unknown", []))
    lines = ["Among the three most frequent reasons of a network:", ""]
    lines += [f"- {why}: {count} {'network' if count == 1 else 'networks'}" for why, count in found.most_common(15)]
    if unknown:
        lines += ["", "Operators without a rule, by networks: "]
        lines[-1] += ", ".join(f"`{name}` {count}" for name, count in unknown.most_common()) + "."
    return lines
