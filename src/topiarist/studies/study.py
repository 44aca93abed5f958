"""A study: which networks are pruned how and which arms are trained at which seeds; and the cells that this means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from topiarist import methods
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.pruning import repaired_by
from topiarist.steps import check_steps
from topiarist.studies.cells import Cell
from topiarist.training.recipe import Recipe

ARMS = {
    "unpruned": "unpruned",
    "pruned": "as pruned",
    "finetune": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "lottery": "lottery ticket",
    "lottery_random": "ticket redrawn",
    "uniform": "uniform widths",
}
"""Arm → what tables call it. ``unpruned`` and ``pruned`` are always there, for the others build on them."""

OPTIONS = ("repair", "rewind", "steps", "step_epochs", "schedule")
"""What else a pruning may say: the method that repairs what is left, whether the survivors return to their initial
values after each cut, and of its steps: how many, epochs of training between two of them, how much goes in each."""

SCRATCH_SEED = 1_000_003
"""Added to the seed wherever a network starts anew: from the seed itself it would start from the trained network's own
initial weights, which is another experiment (a lottery ticket's)."""


@dataclass(frozen=True)
class Pruning:
    """A method with its fields and the budget that it prunes to, perhaps with further options (see `OPTIONS`)."""

    method: str
    budget: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method and, where they were set, its fields and options."""
        settings = ", ".join(f"{key} {value}" for key, value in [*self.fields.items(), *self.options.items()])
        return f"{self.method} ({settings})" if settings else self.method

    @property
    def granularity(self) -> str:
        """``"structure"`` or ``"weight"``."""
        return methods.make(self.method, **self.fields).granularity

    @property
    def goal(self) -> str:
        """The budget in words, for example ``"50 % of MACs"``."""
        kept = "weights" if self.granularity == "weight" else "units"
        nouns = {"macs": "MACs", "params": "parameters", "ratio": kept}
        words = [f"{100 * value:g} % of {nouns[key]}" for key, value in self.budget.items() if key in nouns]
        words += [f"{key} {value}" for key, value in self.budget.items() if key not in nouns]
        return ", ".join(words) or "its own rule"


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
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise TopiaristError(f"There is no arm {unknown[0]!r}: choose from {', '.join(ARMS)}.")
        if self.cap is not None and not (isinstance(self.cap, int | float) and self.cap >= 1):
            raise TopiaristError(f"The cap {self.cap} of Scratch-B must be at least 1, or absent for none.")
        for recipe in (self.recipe, self.finetune):
            _make(Recipe, recipe, "recipe")
        for pruning in self.prunings:
            method = methods.make(pruning.method, **pruning.fields)
            _make(Budget, pruning.budget, "budget")
            _make(Recipe, self._options(pruning).get("between", {}), "recipe")
            check_steps(method, pruning.options.get("steps", 1), pruning.options.get("schedule"))
            repaired_by(method, pruning.options.get("repair"))
            if not isinstance(pruning.options.get("rewind", False), bool):
                raise TopiaristError(
                    f"rewind is true or false, but {pruning.method} has {pruning.options['rewind']!r}."
                )

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Study:
        """A study from plain values, as in a YAML file.

        Keys: ``network``, ``data``, ``prunings`` (entries of ``method``, ``budget``, ``fields`` and `OPTIONS`), and the
        others as the attributes of `Study`; ``seeds`` may be a number of seeds. Where a network, data set, method or
        budget is a list, each of them is meant.

        Raises:
            TopiaristError: for a key that is unknown or missing, or a value that cannot be.
        """
        known = {"network", "prunings", *(entry.name for entry in fields(Study))} - {"networks"}
        if unknown := sorted(set(settings) - known):
            raise TopiaristError(f"A study has no key {unknown[0]!r}: its keys are {', '.join(sorted(known))}.")
        if missing := sorted({"network", "data", "prunings"} - set(settings)):
            raise TopiaristError(f"The study lacks the key {missing[0]!r}: add it.")
        values = {key: value for key, value in settings.items() if key not in ("network", "data", "prunings", "seeds")}
        if "arms" in values:
            values["arms"] = tuple(_list(values["arms"]))
        seeds = settings.get("seeds", 3)
        return Study(
            networks=tuple(str(name) for name in _list(settings["network"])),
            data=tuple(str(name) for name in _list(settings["data"])),
            prunings=tuple(pruning for entry in _list(settings["prunings"]) for pruning in _prunings(entry)),
            seeds=tuple(range(min(seeds, 10_001))) if type(seeds) is int else tuple(_list(seeds)),
            **values,
        )

    @staticmethod
    def load(path: Path) -> Study:
        """Read a study from a YAML (or JSON) file.

        Raises:
            TopiaristError: if the file cannot be read or is no study.
        """
        path = Path(path)
        try:
            text = path.read_text()
            settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise TopiaristError(f"The study {path} cannot be read ({told}): give a YAML file.") from error
        if not isinstance(settings, dict):
            raise TopiaristError(f"The study {path} is no mapping of keys to values: see the documentation of studies.")
        return Study.of(settings)

    def as_json(self) -> dict[str, Any]:
        """The plain values that `of` makes the same study from."""
        return {
            "title": self.title,
            "network": list(self.networks),
            "data": list(self.data),
            "prunings": [
                {"method": entry.method, "budget": dict(entry.budget), "fields": dict(entry.fields), **entry.options}
                for entry in self.prunings
            ],
            "seeds": list(self.seeds),
            "recipe": dict(self.recipe),
            "finetune": dict(self.finetune),
            "arms": list(self.arms),
            "cap": self.cap,
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
                    arms = [arm for arm in ARMS if arm in self.arms or arm == "pruned"]
                    if _trained(pruning):
                        arms = ["unpruned", *(arm for arm in arms if arm != "unpruned")]
                    else:
                        arms = [arm for arm in arms if arm != "unpruned"]
                    for arm in arms:
                        yield self._row(network, data, pruning, arm)

    def cells(self) -> tuple[Cell, ...]:
        """The cells of all rows; some may stand in several rows."""
        return tuple(cell for row in self.rows() for cell in row.cells.values())

    def _row(self, network: str, data: str, pruning: Pruning | None, arm: str) -> Row:
        return Row(
            network, data, pruning, arm, {seed: self._cell(network, data, pruning, arm, seed) for seed in self.seeds}
        )

    def _cell(self, network: str, data: str, pruning: Pruning | None, arm: str, seed: int) -> Cell:
        def cell(
            settings: Mapping[str, Any], *needs: Cell, method: str = "none", budget: Mapping[str, Any] = {}
        ) -> Cell:
            return Cell(arm, network, data, seed, method, dict(budget), settings, needs)

        if arm == "unpruned":
            settings = {"recipe": dict(self.recipe), "seed": seed}
            if pruning is None or not _trained(pruning):
                return cell(settings)
            return cell({**settings, "fields": dict(pruning.fields)}, method=pruning.method)
        assert pruning is not None, "only the unpruned arm comes without a pruning"
        scratch = {"recipe": dict(self.recipe), "seed": seed + SCRATCH_SEED}
        if arm == "uniform" and pruning.granularity == "structure" and set(pruning.budget) == {"macs"}:
            # the budget alone says what the widths are: one network serves all methods
            return cell({**scratch, "cap": self.cap}, budget=pruning.budget)
        settings, need = {
            "pruned": ({"fields": dict(pruning.fields), "seed": seed, **self._options(pruning)}, "unpruned"),
            "finetune": ({"recipe": dict(self.finetune), "seed": seed}, "pruned"),
            "scratch_e": (scratch, "pruned"),
            "scratch_b": ({**scratch, "cap": self.cap}, "pruned"),
            "lottery": ({"recipe": dict(self.recipe), "seed": seed, "start": seed}, "pruned"),
            "lottery_random": ({"recipe": dict(self.recipe), "seed": seed, "start": seed + SCRATCH_SEED}, "pruned"),
            "uniform": ({**scratch, "cap": self.cap}, "pruned"),
        }[arm]
        needed = self._cell(network, data, pruning, need, seed)
        return cell(settings, needed, method=pruning.method, budget=pruning.budget)

    def _options(self, pruning: Pruning) -> dict[str, Any]:
        """What a pruning says beside method and budget, and how the network trains between its steps, if any.

        From weights that it inherits it trains on as in fine-tuning, from its initial values as in the training.
        """
        if not pruning.options.keys() & {"steps", "step_epochs", "schedule"}:
            return dict(pruning.options)
        recipe = {"epochs": Recipe().epochs, **self.recipe} if pruning.options.get("rewind") else self.finetune
        epochs = recipe["epochs"] if pruning.options.get("rewind") else 1
        return {**pruning.options, "between": {**recipe, "epochs": pruning.options.get("step_epochs", epochs)}}


def latency_cell(cell: Cell) -> Cell:
    """The cell that times a network: arms that train one pruned shape share it."""
    trained = ("finetune", "scratch_e", "scratch_b", "lottery", "lottery_random")
    shape = cell.needs[0] if cell.arm in trained else cell
    return Cell("latency", cell.network, cell.data, cell.seed, cell.method, cell.budget, needs=(shape,))


def _trained(pruning: Pruning) -> bool:
    """Whether the method takes part in training, so that its unpruned network is another one."""
    return "training" in methods.get(pruning.method).needs


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _prunings(entry: Any) -> Iterator[Pruning]:
    known = {"method", "budget", "fields", *OPTIONS}
    if not isinstance(entry, Mapping) or not {"method"} <= set(entry) <= known:
        others = ", ".join(("'budget'", "'fields'", *map(repr, OPTIONS)))
        raise TopiaristError(f"The pruning {entry!r} must have the key 'method', and may have {others}.")
    for budget in _list(entry.get("budget") or {}):
        for method in _list(entry["method"]):
            if not isinstance(budget, Mapping):
                raise TopiaristError(f"The budget {budget!r} must be a mapping, for example {{macs: 0.5}}.")
            options = {key: entry[key] for key in OPTIONS if entry.get(key) is not None}
            yield Pruning(str(method), dict(budget), dict(entry.get("fields") or {}), options)


def _make(kind: Any, values: Mapping[str, Any], name: str) -> Any:
    if not isinstance(values, Mapping):
        raise TopiaristError(f"A {name} maps names to values, but got {values!r}.")
    known = [entry.name for entry in fields(kind)]
    if unknown := [key for key in values if key not in known]:
        raise TopiaristError(f"A {name} has no {unknown[0]!r}: it has {', '.join(known)}.")
    try:
        return kind(**values)
    except TypeError as error:
        hint = "YAML takes 1e-3 for text: write 1.0e-3"
        raise TopiaristError(f"The {name} {dict(values)} has a value of a wrong type ({hint}).") from error
