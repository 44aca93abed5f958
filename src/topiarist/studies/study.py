"""A study: which networks are pruned how and which arms are trained at which seeds; and the cells that this means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from topiarist import methods
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.files import read_json, read_yaml
from topiarist.pruning import check_steps, check_wish, repaired_by
from topiarist.studies import published
from topiarist.studies.cells import Cell, unfold
from topiarist.studies.prunings import Pruning, listed, made, prunings
from topiarist.studies.scales import at_scale
from topiarist.train import Recipe, Speed

ARMS = {
    "unpruned": "unpruned",
    "pruned": "as pruned",
    "finetune": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "lottery": "lottery ticket",
    "lottery_random": "ticket redrawn",
    "uniform": "uniform widths",
    "guided": "guided pattern",
    "transferred": "transferred pattern",
}
"""Arm → what tables call it. ``unpruned`` and ``pruned`` are always there, for the others build on them."""

BUILT = ("uniform", "guided", "transferred")
"""Arms whose shapes are built to a pruning's budget, not found by pruning the network at their seed."""

STEPWISE = {"steps", "step_epochs", "schedule"}
"""Options of a pruning between whose steps the network trains."""

SCRATCH_SEED = 1_000_003
"""Added to the seed wherever a network starts anew: from the seed itself it would start from the trained network's own
initial weights, which is another experiment (a lottery ticket's)."""


@dataclass(frozen=True)
class Row:
    """One line of the study's table: an arm of a pruning of a network, and its cell at every seed."""

    network: str
    data: str
    pruning: Pruning | None
    arm: str
    cells: Mapping[int, Cell]


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Attributes:
        networks: names of networks (`topiarist.make_model`).
        data: names of data sets (`topiarist.load_data`).
        prunings: methods and budgets.
        seeds: one trained network, one pruning of it and one run of every arm for each.
        recipe: fields of `topiarist.Recipe`: how the networks are trained, pruned shapes from scratch included.
        finetune: fields of `topiarist.Recipe`: how pruned networks are trained on.
        arms: names from `ARMS`.
        cap: Scratch-B trains for epochs · min(cap, MACs before / MACs after); ``None``: no cap.
        source: where the pattern of the arm ``transferred`` is found: its ``network``, its ``data`` and its ``budget``,
            each the row's own where it is left out; by the row's method, with the study's seeds and recipes.
        selectors: names of networks that get channel selectors (`topiarist.add_selectors`).
        speed: how `topiarist.fit` computes: its ``precision``, ``channels_last``, ``compiled``.
        published: published numbers to be shown beside ours (see `topiarist.studies.published`).
        note: what a reader should know, shown with the results.
        title: heads the report.
    """

    networks: tuple[str, ...]
    data: tuple[str, ...]
    prunings: tuple[Pruning, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 40, "lr": 0.001, "schedule": "constant"})
    arms: tuple[str, ...] = ("finetune", "scratch_e", "scratch_b", "uniform")
    cap: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    selectors: tuple[str, ...] = ()
    speed: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    title: str = "Pruning study"

    def __post_init__(self) -> None:
        for name, values in (("network", self.networks), ("data", self.data), ("pruning", self.prunings)):
            if not values:
                raise TopiaristError(f"The study has no {name}: name at least one.")
        whole = all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise TopiaristError(
                f"The seeds {list(self.seeds)} must be different whole numbers from 0 on, at least one."
            )
        if len(self.seeds) > 10_000 or any(isinstance(seed, bool) or seed >= 2**62 for seed in self.seeds):
            raise TopiaristError("The seeds must be at most 10,000 whole numbers below 2^62.")
        for name in ("title", "note"):
            if not isinstance(getattr(self, name), str):
                raise TopiaristError(f"The {name} must be a text, but got {getattr(self, name)!r}: put it in quotes.")
        if unknown := [arm for arm in self.arms if not isinstance(arm, str) or arm not in ARMS]:
            raise TopiaristError(f"There is no arm {unknown[0]!r}: choose from {', '.join(ARMS)}.")
        number = isinstance(self.cap, int | float) and not isinstance(self.cap, bool)
        if self.cap is not None and not (number and 1 <= self.cap < math.inf):
            raise TopiaristError(f"The cap {self.cap} of Scratch-B must be at least 1, or absent for none.")
        for recipe in (self.recipe, self.finetune):
            made(Recipe, recipe, "recipe")
        made(Speed, self.speed, "speed")
        for pruning in self.prunings:
            self._check(pruning)
        self._check_source()
        if unknown := [name for name in self.selectors if name not in self._networks()]:
            raise TopiaristError(f"The selectors are for {unknown[0]!r}, which is no network here: correct it.")
        for entry in self.published:
            published.check(entry, list(ARMS))
            if not published.meets(entry, self.networks, self.data, self.prunings):
                raise TopiaristError(
                    f"The published entry of {entry['source']!r} is about no row of this study: correct its network, "
                    "data, method, budget or fields, or leave it out."
                )

    def _check(self, pruning: Pruning) -> None:
        """Raises where a pruning cannot be."""
        for named, known in ((pruning.networks, self.networks), (pruning.data, self.data)):
            if unknown := [name for name in named if name not in known]:
                raise TopiaristError(
                    f"{pruning.method} is to prune {unknown[0]!r}, which the study lacks: name it there."
                )
        method = methods.make(pruning.method, **pruning.fields)
        check_wish(method, made(Budget, pruning.budget, "budget") if pruning.budget else None)
        made(Recipe, self._options(pruning).get("between", {}), "recipe")
        check_steps(method, pruning.options.get("steps", 1), pruning.options.get("schedule"))
        repaired_by(method, pruning.options.get("repair"))
        if not isinstance(pruning.options.get("rewind", False), bool):
            raise TopiaristError(f"rewind is true or false, but {pruning.method} has {pruning.options['rewind']!r}.")

    def _check_source(self) -> None:
        """Raises where no pattern can be transferred, though the arm asks for one."""
        if not isinstance(self.source, Mapping) or not set(self.source) <= {"network", "data", "budget"}:
            raise TopiaristError(f"The source has the keys network, data and budget, but got {self.source!r}.")
        for name in ("network", "data"):
            if not isinstance(self.source.get(name, ""), str):
                raise TopiaristError(f"The {name} of the source must be one name, but got {self.source[name]!r}.")
        if "transferred" in self.arms and not {"network", "data"} & set(self.source):
            raise TopiaristError(
                "The arm 'transferred' takes a pattern from elsewhere: add the key 'source' with a network or data."
            )
        made(Budget, self.source.get("budget", {}), "budget")

    def _networks(self) -> tuple[str, ...]:
        """All networks that are trained, the source of a pattern among them."""
        return (*self.networks, *([str(self.source["network"])] if "network" in self.source else []))

    @staticmethod
    def of(settings: Mapping[str, Any], scale: str | None = None) -> Study:
        """A study from plain values, as in a YAML file.

        Keys: ``network``, ``data``, ``prunings`` (entries of ``method``, ``budget``, ``fields``, of ``network`` and
        ``data`` where it is not for all of them, and of `topiarist.studies.prunings.OPTIONS`), and the others as the
        attributes of `Study`; ``seeds`` may be a number of seeds. Where a network, data set, method or budget is a
        list, each of them is meant. ``scales`` and ``scale`` are explained at `topiarist.studies.scales.at_scale`.

        Args:
            settings: the plain values.
            scale: which of the study's scales is meant.

        Raises:
            TopiaristError: for a key that is unknown or missing, or a value that cannot be.
        """
        settings = at_scale(settings, scale)
        known = {"network", "prunings", *(entry.name for entry in fields(Study))} - {"networks"}
        if unknown := sorted(set(settings) - known):
            raise TopiaristError(f"A study has no key {unknown[0]!r}: its keys are {', '.join(sorted(known))}.")
        if missing := sorted({"network", "data", "prunings"} - set(settings)):
            raise TopiaristError(f"The study lacks the key {missing[0]!r}: add it.")
        values = {key: value for key, value in settings.items() if key not in ("network", "data", "prunings", "seeds")}
        for key in ("arms", "selectors", "published"):
            if key in values:
                values[key] = tuple(listed(values[key]))
        seeds = settings.get("seeds", 3)
        if type(seeds) is int and seeds < 1:
            raise TopiaristError(f"The seeds are how many, from 1 on, or a list of them, but got {seeds}.")
        return Study(
            networks=tuple(str(name) for name in listed(settings["network"])),
            data=tuple(str(name) for name in listed(settings["data"])),
            prunings=tuple(pruning for entry in listed(settings["prunings"]) for pruning in prunings(entry)),
            seeds=tuple(range(min(seeds, 10_001))) if type(seeds) is int else tuple(listed(seeds)),
            **values,
        )

    @staticmethod
    def load(path: Path, scale: str | None = None) -> Study:
        """Read a study from a YAML (or JSON) file, at one of its scales where it has several.

        Raises:
            TopiaristError: if the file cannot be read or is no study.
        """
        path = Path(path)
        read = read_json if path.suffix == ".json" else read_yaml
        settings = read(path, "the study", "give a YAML file")
        if not isinstance(settings, dict):
            raise TopiaristError(f"The study {path} is no mapping of keys to values: see the documentation of studies.")
        return Study.of(settings, scale)

    def as_json(self) -> dict[str, Any]:
        """The plain values that `of` makes the same study from."""
        return {
            "title": self.title,
            "network": list(self.networks),
            "data": list(self.data),
            "prunings": [
                {
                    "method": entry.method,
                    "budget": dict(entry.budget),
                    "fields": dict(entry.fields),
                    "network": list(entry.networks),
                    "data": list(entry.data),
                    **entry.options,
                }
                for entry in self.prunings
            ],
            "seeds": list(self.seeds),
            "recipe": dict(self.recipe),
            "finetune": dict(self.finetune),
            "arms": list(self.arms),
            "cap": self.cap,
            "source": dict(self.source),
            "selectors": list(self.selectors),
            "speed": dict(self.speed),
            "published": [dict(entry) for entry in self.published],
            "note": self.note,
        }

    def label(self, pruning: Pruning) -> str:
        """What tables call a pruning: its method, with fields and options where those tell it from another one."""
        settings = (pruning.fields, pruning.options)
        alike = all((one.fields, one.options) == settings for one in self.prunings if one.method == pruning.method)
        return pruning.method if alike else pruning.label

    def rows(self) -> Iterator[Row]:
        """The lines of the table, in its order: each network unpruned, then arm by arm of each pruning."""
        for network in self.networks:
            for data in self.data:
                yield self._row(network, data, None, "unpruned")
                for pruning in self.prunings:
                    if not pruning.meant(network, data):
                        continue
                    arms = [arm for arm in ARMS if arm in self.arms or arm == "pruned"]
                    if pruning.trained:
                        arms = ["unpruned", *(arm for arm in arms if arm != "unpruned")]
                    else:
                        arms = [arm for arm in arms if arm != "unpruned"]
                    for arm in arms:
                        yield self._row(network, data, pruning, arm)

    def cells(self) -> tuple[Cell, ...]:
        """The cells of all rows; some may stand in several rows."""
        return tuple(cell for row in self.rows() for cell in row.cells.values())

    def rehearsal(self) -> Study:
        """The same study at one seed and without any training: what fails in it fails in the study as well."""
        untrained = {"epochs": 0}
        prunings = (
            replace(each, options={**each.options, "step_epochs": 0}) if each.options.keys() & STEPWISE else each
            for each in self.prunings
        )
        return replace(
            self,
            prunings=tuple(prunings),
            seeds=self.seeds[:1],
            recipe={**self.recipe, **untrained},
            finetune={**self.finetune, **untrained},
        )

    def _row(self, network: str, data: str, pruning: Pruning | None, arm: str) -> Row:
        return Row(
            network, data, pruning, arm, {seed: self._cell(network, data, pruning, arm, seed) for seed in self.seeds}
        )

    def _cell(self, network: str, data: str, pruning: Pruning | None, arm: str, seed: int) -> Cell:
        def cell(
            settings: Mapping[str, Any], *needs: Cell, method: str = "none", budget: Mapping[str, Any] = {}
        ) -> Cell:
            told = {**settings, **self._everywhere(network, arm)}
            return Cell(arm, network, data, seed, method, dict(budget), told, needs)

        if arm == "unpruned":
            settings = {"recipe": dict(self.recipe), "seed": seed}
            if pruning is None or not pruning.trained:
                return cell(settings)
            return cell({**settings, "fields": dict(pruning.fields)}, method=pruning.method)
        assert pruning is not None, "only the unpruned arm comes without a pruning"
        scratch = {"recipe": dict(self.recipe), "seed": seed + SCRATCH_SEED}
        if arm in BUILT:
            return self._built(cell({**scratch, "cap": self.cap}), pruning)
        settings, need = {
            "pruned": ({"fields": dict(pruning.fields), "seed": seed, **self._options(pruning)}, "unpruned"),
            "finetune": ({"recipe": dict(self.finetune), "seed": seed}, "pruned"),
            "scratch_e": (scratch, "pruned"),
            "scratch_b": ({**scratch, "cap": self.cap}, "pruned"),
            "lottery": ({"recipe": dict(self.recipe), "seed": seed, "start": seed}, "pruned"),
            "lottery_random": ({"recipe": dict(self.recipe), "seed": seed, "start": seed + SCRATCH_SEED}, "pruned"),
        }[arm]
        needed = self._cell(network, data, pruning, need, seed)
        return cell(settings, needed, method=pruning.method, budget=pruning.budget)

    def _everywhere(self, network: str, arm: str) -> dict[str, Any]:
        """What the settings of all cells of a network say, where the study says it; speed is for those that train."""
        told: dict[str, Any] = {"selectors": True} if network in self.selectors else {}
        return {**told, "speed": dict(self.speed)} if self.speed and arm != "pruned" else told

    def _built(self, cell: Cell, pruning: Pruning) -> Cell:
        """The cell of a shape that is built to the budget: what it needs is the pattern, and then the pruned network.

        Where the budget alone says how large the network is, no pruned one is needed, and one cell of uniform widths
        serves all methods.
        """
        needs: tuple[Cell, ...] = () if cell.arm == "uniform" else (self._pattern(cell, pruning),)
        if pruning.measured:
            needs += (self._cell(cell.network, cell.data, pruning, "pruned", cell.seed),)
        if pruning.equal == "params":
            cell = replace(cell, settings={**cell.settings, "equal": "params"})
        return replace(cell, method=pruning.method if needs else "none", budget=dict(pruning.budget), needs=needs)

    def _pattern(self, cell: Cell, pruning: Pruning) -> Cell:
        """The design pattern that an arm builds from: the average over the pruned networks of all seeds."""
        network, data = cell.network, cell.data
        if cell.arm == "transferred":
            network, data = str(self.source.get("network", network)), str(self.source.get("data", data))
            pruning = replace(pruning, budget=dict(self.source.get("budget", pruning.budget)))
        found = tuple(self._cell(network, data, pruning, "pruned", seed) for seed in self.seeds)
        return Cell("pattern", network, data, 0, pruning.method, dict(pruning.budget), needs=found)

    def _options(self, pruning: Pruning) -> dict[str, Any]:
        """What a pruning says beside method and budget, and how the network trains between its steps, if any.

        From weights that it inherits it trains on as in fine-tuning, from its initial values as in the training.
        """
        if not pruning.options.keys() & STEPWISE:
            return dict(pruning.options)
        recipe = {"epochs": Recipe().epochs, **self.recipe} if pruning.options.get("rewind") else self.finetune
        epochs = recipe["epochs"] if pruning.options.get("rewind") else 1
        return {**pruning.options, "between": {**recipe, "epochs": pruning.options.get("step_epochs", epochs)}}


def latency_cell(cell: Cell) -> Cell:
    """The cell that times a network: arms that train one pruned shape share it."""
    trained = ("finetune", "scratch_e", "scratch_b", "lottery", "lottery_random")
    shape = cell.needs[0] if cell.arm in trained else cell
    return Cell("latency", cell.network, cell.data, cell.seed, cell.method, cell.budget, needs=(shape,))


def latency_cells(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells that time the networks of these cells and of all that they need, each once."""
    return tuple(dict.fromkeys(latency_cell(cell) for cell in unfold(cells) if cell.arm != "pattern"))
