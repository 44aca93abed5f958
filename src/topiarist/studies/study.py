"""A study: which networks are pruned how and which arms are trained at which seeds; and the cells that this means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from topiarist.budget import Budget
from topiarist.deploy import get_target
from topiarist.errors import TopiaristError
from topiarist.files import check_fields, from_plain, read_json, read_yaml, shown, suggestion
from topiarist.studies.arms import ARMS, FINETUNE_RECIPE, Case, Terms
from topiarist.studies.cells import Cell, Json
from topiarist.studies.prunings import StudyPruning, listed, prunings
from topiarist.studies.published import Entry
from topiarist.studies.scales import at_scale
from topiarist.train import Recipe, Speed

MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Row:
    """One row of the study's table: an arm of a pruning of a network, and its cell at every seed."""

    network: str
    data: str
    pruning: StudyPruning | None
    arm: str
    cells: Mapping[int, Cell]


@dataclass(frozen=True)
class _Source:
    """What ``source`` of a study may say."""

    network: str = ""
    data: str = ""
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Study(Terms):
    """The comparison that a YAML file describes: networks × data × prunings × seeds, and the arms of each.

    Attributes:
        networks: names of networks (`topiarist.make_model`).
        data: names of data sets (`topiarist.load_data`).
        prunings: requests, and the networks and data that they are for.
        seeds: one trained network, one pruning of it and one run of every arm for each.
        recipe: fields of `topiarist.Recipe`: how the networks are trained, pruned shapes from scratch included.
        finetune: fields of `topiarist.Recipe`: how pruned networks are trained on.
        arms: names from `topiarist.studies.ARMS`.
        cap: Scratch-B trains for epochs · min(cap, MACs before / MACs after); ``None``: no cap.
        source: of the pattern of the arm ``transferred``: ``network``, ``data`` and ``budget``, each the row's own
            where it is left out; by the row's method, with the study's seeds and recipes.
        selectors: names of networks that get channel selectors (`topiarist.add_selectors`).
        speed: how `topiarist.fit` computes: its ``precision``, ``channels_last``, ``compiled``.
        targets: names of runtimes (`topiarist.deploy.target_names`) on which the networks are timed.
        published: published numbers to show beside ours (see `topiarist.studies.published.Entry`).
        note: what a reader should know, shown with the results.
        title: heads the report.
    """

    networks: tuple[str, ...]
    data: tuple[str, ...]
    prunings: tuple[StudyPruning, ...]
    arms: tuple[str, ...] = ("finetune", "scratch_e", "scratch_b", "uniform")
    targets: tuple[str, ...] = ("torch",)
    published: tuple[Json, ...] = ()
    note: str = ""
    title: str = "Pruning study"

    def __post_init__(self) -> None:
        check_fields(self, "the study")
        must_be = {"network": self.networks, "data": self.data, "pruning": self.prunings, "target": self.targets}
        for name, values in must_be.items():
            if not values:
                raise TopiaristError(f"the study has no {name}; name at least one")
        for target in self.targets:
            get_target(target)
        legal = all(0 <= seed < 2**62 for seed in self.seeds)
        if not legal or not 0 < len(set(self.seeds)) == len(self.seeds) <= MOST_SEEDS:
            raise TopiaristError(f"the seeds must be 1 to {MOST_SEEDS:,} different whole numbers from 0 to 2^62")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise TopiaristError(f"there is no arm {shown(unknown[0])}; {suggestion(unknown[0], ARMS)}")
        if self.cap is not None and self.cap < 1:
            raise TopiaristError(f"the cap {self.cap} of Scratch-B must be at least 1, or absent for none")
        for recipe in (self.recipe, self.finetune):
            if from_plain(Recipe, recipe, "the recipe").distillation:
                raise TopiaristError("the networks of a study have no teacher: leave distillation out of its recipes")
        from_plain(Speed, self.speed, "the speed")
        for pruning in self.prunings:
            self._check(pruning)
        self._check_source()
        networks = (*self.networks, *([str(self.source["network"])] if "network" in self.source else []))
        if unknown := [name for name in self.selectors if name not in networks]:
            raise TopiaristError(
                f"the selectors are for {shown(unknown[0])}, which is no network of the study; correct it"
            )
        for entry in self.published:
            if not Entry.of(entry).meets(self.networks, self.data, self.prunings):
                raise TopiaristError(
                    f"the published entry of {shown(entry['source'])} is about no row of this study; correct its "
                    "network, data, method, budget or fields, or leave it out"
                )

    def _check(self, pruning: StudyPruning) -> None:
        """Raises where a pruning is for a network or data that the study lacks."""
        for named, known in ((pruning.networks, self.networks), (pruning.data, self.data)):
            if unknown := [name for name in named if name not in known]:
                raise TopiaristError(
                    f"{pruning.method} is to prune {shown(unknown[0])}, which the study lacks; name it there"
                )

    def _check_source(self) -> None:
        """Raises where the source of a transferred pattern is missing or impossible."""
        from_plain(_Source, self.source, "the source")
        if "transferred" in self.arms and not {"network", "data"} & set(self.source):
            raise TopiaristError(
                "the arm 'transferred' takes a pattern from elsewhere; add the key 'source' with a network or data"
            )

    @staticmethod
    def of(settings: Json, scale: str | None = None) -> Study:
        """Makes a study of plain values, as in a YAML file.

        Keys: ``network``, ``data``, ``prunings`` (see `topiarist.studies.prunings.prunings`), and the others as the
        attributes of `Study`; ``seeds`` may be a number of seeds. Where a network, data set, method or budget is a
        list, each of them is meant. ``scales`` and ``scale`` are explained at `topiarist.studies.scales.at_scale`.

        Args:
            settings: the plain values.
            scale: which of the study's scales, where it has several.

        Raises:
            TopiaristError: a key is unknown or missing, or a value is impossible.
        """
        settings = at_scale(settings, scale)
        known = {"network", "prunings", *(entry.name for entry in fields(Study))} - {"networks"}
        if unknown := sorted(set(settings) - known, key=str):
            near = suggestion(unknown[0], sorted(known))
            raise TopiaristError(f"a study has no key {shown(unknown[0])}; {near}")
        if missing := sorted({"network", "data", "prunings"} - set(settings)):
            raise TopiaristError(f"the study lacks the key {shown(missing[0])}; add it")
        values = {key: value for key, value in settings.items() if key not in ("network", "data", "prunings", "seeds")}
        for key in ("arms", "selectors", "targets", "published"):
            if key in values:
                values[key] = tuple(listed(values[key]))
        seeds = settings.get("seeds", 3)
        if type(seeds) is int and seeds < 1:
            raise TopiaristError(f"seeds is how many, from 1 on, or a list of them, but got {seeds}")
        return Study(
            networks=tuple(listed(settings["network"])),
            data=tuple(listed(settings["data"])),
            prunings=tuple(
                pruning
                for entry in listed(settings["prunings"])
                for pruning in prunings(entry, values.get("recipe", {}), values.get("finetune", FINETUNE_RECIPE))
            ),
            seeds=tuple(range(min(seeds, MOST_SEEDS + 1))) if type(seeds) is int else tuple(listed(seeds)),
            **values,
        )

    @staticmethod
    def load(path: Path, scale: str | None = None) -> Study:
        """Reads a study from a YAML (or JSON) file, at one of its scales where it has several.

        Raises:
            TopiaristError: the file cannot be read, or is no study.
        """
        path = Path(path)
        read = read_json if path.suffix == ".json" else read_yaml
        settings = read(path, "the study", "give a YAML file")
        if not isinstance(settings, dict):
            raise TopiaristError(f"the study {path} is no mapping of keys to values; see the documentation of studies")
        return Study.of(settings, scale)

    def as_json(self) -> dict[str, Any]:
        """Returns the plain values that `of` makes the same study of."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values |= {"network": values.pop("networks"), "prunings": [entry.to_json() for entry in self.prunings]}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=dict))  # tuples become lists
        return plain

    def label(self, pruning: StudyPruning) -> str:
        """Returns the label of a pruning: its method, with its settings where another pruning has other ones."""
        alike = all(one.label == pruning.label for one in self.prunings if one.method == pruning.method)
        return pruning.method if alike else pruning.label

    def rows(self) -> Iterator[Row]:
        """Yields the rows of the table, in its order: each network unpruned, then arm by arm of each pruning."""
        for network in self.networks:
            for data in self.data:
                yield self._row(network, data, None, "unpruned")
                for pruning in self.prunings:
                    if not pruning.applies_to(network, data):
                        continue
                    own = {"unpruned"} if pruning.trained else set()
                    wanted = ({"pruned", *self.arms} - {"unpruned"}) | own
                    for arm in (name for name in ARMS if name in wanted):
                        yield self._row(network, data, pruning, arm)

    def cells(self) -> tuple[Cell, ...]:
        """Returns the cells of all rows; a cell may be in several rows."""
        return tuple(cell for row in self.rows() for cell in row.cells.values())

    def dry_run(self) -> Study:
        """Returns the same study at one seed and without any training: what fails in it fails in the study as well."""
        untrained = {"epochs": 0}
        return replace(
            self,
            seeds=self.seeds[:1],
            recipe={**self.recipe, **untrained},
            finetune={**self.finetune, **untrained},
        )

    def _row(self, network: str, data: str, pruning: StudyPruning | None, arm: str) -> Row:
        cases = (Case(self, network, data, seed, pruning) for seed in self.seeds)
        return Row(network, data, pruning, arm, {case.seed: ARMS[arm].cell(case) for case in cases})
