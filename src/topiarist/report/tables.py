"""The tables of the report as plain values: the same for the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from topiarist.methods import describe, names
from topiarist.report import formatting
from topiarist.studies import ARMS, Json


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: its text.
        small: more text, in small letters.
        value: its number, by which it is sorted; ``None`` for text and for unknown numbers.
        arm: whose mark is shown before the text.
        strip: ends and mean of an interval, drawn to the scale of its column.
    """

    text: str
    small: str = ""
    value: float | None = None
    arm: str = ""
    strip: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Line:
    """One line of a table: its cells, what it can be filtered by, and whether a new group begins with it."""

    cells: tuple[Cell, ...]
    keys: Mapping[str, str]
    first: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: a word for its id.
        heads: names of the columns.
        numeric: names of those that hold numbers.
        lines: in the order of the study.
        notes: letter in the cells → what it stands for.
    """

    name: str
    heads: tuple[str, ...]
    numeric: frozenset[str]
    lines: list[Line] = field(default_factory=list)
    notes: Mapping[str, str] = field(default_factory=dict)


def _varying(results: Json) -> list[str]:
    """Returns which of network and data differ between rows, so that they need a column."""
    return [key for key in ("network", "data") if len({row[key] for row in results["rows"]}) > 1]


def labels(results: Json) -> dict[str, str]:
    """Returns arm → its label; of several the first one."""
    return {row["arm"]: row["label"] for row in reversed(results["rows"])}


def arms_table(results: Json) -> Table:
    """Returns every arm of every pruning: accuracy, published accuracy, costs."""
    published = any(row.get("published") for row in results["rows"])
    sources = _sources(results)
    varying = _varying(results)
    heads = [key.capitalize() for key in varying]
    heads += ["Method", "Arm", "Accuracy, %"] + (["Published, %"] if published else [])
    targets = latency_targets(results["rows"])
    latencies = [f"Latency, {target}" for target in targets] if len(targets) > 1 else ["Latency"]
    numbers = ("MACs", "Parameters", "File", *latencies, "Epochs", "Seeds")
    table = Table("arms", (*heads, *numbers), frozenset((*numbers, "Accuracy, %", "Published, %")))
    table = replace(table, notes={letter: source for source, letter in sources.items()})
    before: tuple[str, ...] = ()
    alike = _alike(results["rows"])
    for row, same in zip(results["rows"], alike, strict=True):
        cells = [Cell(row[key]) for key in varying]
        cells += [Cell(row["method"], row["goal"]), Cell(row["label"], arm=row["arm"])]
        cells += [Cell(formatting.accuracy(row["accuracy"]), value=row["accuracy"]["mean"])]
        cells += [_published(row, sources)] if published else []
        cells += [
            Cell(formatting.count(row["macs"]), _share(row["macs_ratio"]), row["macs"]),
            Cell(formatting.count(row["params"]), _share(row["params_ratio"]), row["params"]),
            Cell(formatting.size(row["bytes"]), value=row["bytes"]),
            *_latencies(row, targets, same),
            Cell(formatting.DASH if row["epochs"] is None else f"{row['epochs']:.0f}", value=row["epochs"]),
            Cell(str(row["accuracy"]["n"]), value=row["accuracy"]["n"]),
        ]
        kind = (row["network"], row["data"], row["method"], row["goal"])
        table.lines.append(Line(tuple(cells), _keys(row, row["arm"]), kind != before))
        before = kind
    return table


def latency_targets(rows: Sequence[Json]) -> list[str]:
    """Returns the targets on which networks were timed, the study's first one first."""
    return list(dict.fromkeys(target for row in rows for target in row.get("latency") or {}))


def _latencies(row: Json, targets: Sequence[str], alike: str) -> list[Cell]:
    """Returns a cell for each target; of one target, or of results that name none, that of ``latency_ms``."""
    if len(targets) < 2:
        value = row["latency_ms"]
        return [Cell(formatting.latency(formatting.first_reading(row), value), alike, value)]
    readings = [row.get("latency", {}).get(target, {}) for target in targets]
    return [Cell(formatting.latency(each, each.get("value")), alike, each.get("value")) for each in readings]


def _alike(rows: Sequence[Json]) -> list[str]:
    """Returns for each row the first other pruning whose networks have the same shapes: ``"as unpruned"``."""
    first: dict[tuple[str, ...], Json] = {}
    labels = []
    for row in rows:
        shapes = row.get("shapes") or ()
        one = first.setdefault((row["network"], row["data"], *shapes), row) if shapes else row
        if (one["method"], one["goal"]) == (row["method"], row["goal"]):
            labels.append("")
        else:
            goal = "" if one["goal"] == row["goal"] else one["goal"]
            labels.append(f"as {one['label'] if one['method'] == 'none' else one['method']} {goal}".rstrip())
    return labels


def _sources(results: Json) -> dict[str, str]:
    """Returns source of published numbers → its letter."""
    known = [row["published"].get("source") for row in results["rows"] if row.get("published")]
    return {source: _letter(number) for number, source in enumerate(dict.fromkeys(filter(None, known)))}


def _letter(number: int) -> str:
    """Returns a to z, then aa, ab and so on."""
    more, last = divmod(number, 26)
    return (_letter(more - 1) if more else "") + chr(ord("a") + last)


def _published(row: Json, sources: Mapping[str, str]) -> Cell:
    known = row.get("published")
    if not known:
        return Cell("")
    text = formatting.accuracy({"mean": known["accuracy"], "std": known.get("spread")})
    return Cell(text, sources.get(known.get("source"), ""), known["accuracy"])


def _share(ratio: float | None) -> str:
    return "" if ratio is None else formatting.percent(ratio)


def overall_table(results: Json) -> Table:
    """Returns pairs of arms over all prunings, and over those of each method."""
    heads = ("Compared", "Method", "Difference, points", "95 % CI", "Better", "Prunings", "Seeds")
    table = Table("overall", heads, frozenset(("Prunings", "Difference, points", "Seeds")))
    entries = results.get("overall", [])
    span = span_of(entries)
    before: tuple[str, ...] = ()
    methods = {entry["method"] for entry in entries} - {""}
    for entry in entries:
        if len(methods) == 1 and entry["method"]:
            continue  # the same as over all
        pair = (entry["a"], entry["b"])
        cells = (
            _pair(results, entry),
            Cell(entry["method"] or "all methods"),
            Cell(formatting.signed(entry["mean"]), value=entry["mean"]),
            Cell(formatting.interval(entry["low"], entry["high"]), strip=strip(entry, span)),
            _better(results, entry),
            Cell(str(entry["prunings"]), value=entry["prunings"]),
            Cell(str(entry["n"]), value=entry["n"]),
        )
        keys = {"arm": " ".join(pair)} | ({"method": entry["method"]} if entry["method"] else {})
        table.lines.append(Line(cells, keys, pair != before))
        before = pair
    return table


def comparison_table(results: Json) -> Table:
    """Returns every comparison of two arms of a pruning, and of a method with random pruning."""
    varying = _varying(results)
    heads = [*(key.capitalize() for key in varying), "Method", "Compared"]
    heads += ["Difference, points", "95 % CI", "Better", "Seeds"]
    table = Table("comparisons", tuple(heads), frozenset(("Difference, points", "Seeds")))
    before: tuple[str, ...] = ()
    for entry in results["comparisons"]:
        cells = (
            *(Cell(entry[key]) for key in varying),
            Cell(entry["method"], entry["goal"]),
            _pair(results, entry),
            Cell(formatting.signed(entry["mean"]), value=entry["mean"]),
            Cell(formatting.interval(entry["low"], entry["high"])),
            _better(results, entry),
            Cell(str(entry["n"]), value=entry["n"]),
        )
        kind = (entry["network"], entry["data"], entry["method"], entry["goal"])
        arm = f"{entry['a']} {entry['b']}" if not entry["when"] else ""
        table.lines.append(Line(cells, _keys(entry, arm), kind != before))
        before = kind
    return table


def _keys(row: Json, arm: str) -> dict[str, str]:
    return {"network": row["network"], "data": row["data"], "method": row["method"], "arm": arm}


def _pair(results: Json, entry: Json) -> Cell:
    names = labels(results)
    one, other = names.get(entry["a"], entry["a"]), names.get(entry["b"], entry["b"])
    return Cell(f"{one} − {other}", entry.get("when", ""))


def _better(results: Json, entry: Json) -> Cell:
    if not entry["significant"]:
        return Cell("not significant")
    arm = str(entry["a"] if entry["mean"] > 0 else entry["b"])
    return Cell(labels(results).get(arm, arm), arm="" if entry.get("when") else arm)


def span_of(entries: Sequence[Json]) -> float:
    """Returns how far a strip reaches to either side of zero, so that it holds all of these intervals."""
    return 1.1 * max((abs(end) for entry in entries for end in _ends(entry)), default=0.0) or 1.0


def strip(entry: Json, span: float) -> dict[str, str]:
    """Returns where an interval's bar and its mean's dot are on a strip from −span to span, in per cent of it."""
    low, mean, high = (max(-span, min(span, value)) for value in (_ends(entry)[0], entry["mean"], _ends(entry)[1]))
    return {
        "left": f"{50 + 50 * low / span:.1f}",
        "width": f"{50 * (high - low) / span:.1f}",
        "dot": f"{50 + 50 * mean / span:.1f}",
    }


def _ends(entry: Json) -> tuple[float, float]:
    mean = float(entry["mean"])
    return (mean, mean) if entry["low"] is None else (float(entry["low"]), float(entry["high"]))


def settings(results: Json) -> list[tuple[str, str]]:
    """Returns the settings of a study: names and values."""
    study = results["study"]
    proofs = [row["proof"] for row in results["rows"] if row["proof"] is not None]
    named = [("Seeds", ", ".join(map(str, study["seeds"])))]
    named += [("Training", _listed(study["recipe"]))]
    arms = [ARMS[name] for name in study.get("arms", ("finetune",)) if name in ARMS]
    if any(arm.recipe == "finetune" for arm in arms):
        named += [("Fine-tuning", _listed(study["finetune"]))]
    named += [(entry["method"]["name"], _listed(set_)) for entry in study["prunings"] if (set_ := _fields_set(entry))]
    if any(arm.capped for arm in arms):
        named += [("Cap of Scratch-B", "none" if study["cap"] is None else f"{study['cap']:g} × the epochs")]
    if proofs:
        named += [("Cut and masked network", f"largest relative difference {max(proofs):.1g} in float64")]
    if uneven := _uneven(results["rows"]):
        advice = f"4 does not divide some channels of {len(uneven)} pruned networks; runtimes are slow there"
        named += [("Widths", f"{advice}: budget multiple: 8")]
    named += [(key.capitalize(), str(value)) for key, value in results["environment"].items()]
    return list(dict.fromkeys([*named, ("Topiarist", results["topiarist"])]))


def _uneven(rows: Sequence[Json]) -> set[tuple[str, ...]]:
    """Returns the structured prunings that leave a group a number of units that 4 does not divide, where it did."""
    return {
        (row["network"], row["data"], row["method"], row["goal"])
        for row in rows
        if not row.get("kernels") and any(kept % 4 and not units % 4 for kept, units in _counts(row))
    }


def _counts(row: Json) -> list[tuple[int, int]]:
    """Returns the kept and all units of each group, where all seeds keep as many."""
    return [(int(kept), units) for kept, units in (row.get("widths") or {}).values() if kept == int(kept)]


def _fields_set(pruning: Json) -> Json:
    """Returns the fields of a pruning's method that are not as by default."""
    name, given = pruning["method"]["name"], {k: v for k, v in pruning["method"].items() if k != "name"}
    defaults = {entry["name"]: entry["default"] for entry in describe(name)["fields"]} if name in names() else {}
    return {key: value for key, value in given.items() if value != defaults.get(key, ...)}


def _listed(values: Json) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "as by default"
