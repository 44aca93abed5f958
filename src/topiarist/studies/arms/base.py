"""What an arm of a study is: one value, from its name in tables to how its cell is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from topiarist.studies.cells import Cell, Json
from topiarist.studies.job import Job, Result
from topiarist.studies.prunings import StudyPruning

FINETUNE_RECIPE: dict[str, Any] = {"epochs": 40, "lr": 0.001, "schedule": "constant"}
"""How pruned networks are trained on where a study does not say it."""

SCRATCH_SEED = 1_000_003
"""Added to the seed wherever a network starts anew: from the seed itself it would start from the trained network's own
initial weights, which is another experiment (a lottery ticket's)."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all cells of a study have in common; `topiarist.studies.Study` explains the fields."""

    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Json = field(default_factory=dict)
    finetune: Json = field(default_factory=FINETUNE_RECIPE.copy)
    cap: float | None = None
    source: Json = field(default_factory=dict)
    selectors: tuple[str, ...] = ()
    speed: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One pruning of one network on one data set at one seed of a study; every arm has a cell of it.

    Attributes:
        study: has the recipes and the seeds.
        network: the network's name.
        data: the data set's name.
        seed: one of the study's.
        pruning: method and budget; ``None`` for the unpruned network that all prunings share.
    """

    study: Terms
    network: str
    data: str
    seed: int
    pruning: StudyPruning | None = None

    @property
    def pruned_by(self) -> StudyPruning:
        """The pruning, for arms that cannot do without one."""
        assert self.pruning is not None, "only the unpruned arm comes without a pruning"
        return self.pruning


@dataclass(frozen=True)
class Arm:
    """One way from a pruning to a result, everything that a study and its report know of it.

    Attributes:
        name: in studies, cells and on the command line.
        order: its place in tables, lowest first.
        label: its name in tables and figures.
        phrase: its name in a sentence.
        mark: matplotlib's letter for its mark in figures.
        colours: of the mark, on light and on dark paper.
        run: computes a cell.
        how: how it was done, for the end of the report.
        needs: the cells that a cell of it builds on.
        settings: what only its own cells say, beside recipe, seed and what the study says for all.
        recipe: which recipe of the study it trains by; empty where nothing is trained.
        capped: whether it trains for as much computation as the unpruned network, up to the study's ``cap``.
        shape: its network's: of ``"full"`` width, the ``"pruned"`` one, or one ``"built"`` to the pruning's budget.
        from_scratch: whether it trains from random weights of a new seed; with the pruned shape it is the baseline of
            fine-tuning and of built shapes, of several the last one.
        compared_with: names of the arms that it is compared with, seed by seed.
        label_of: its label for one pruning, where that differs.
    """

    name: str
    order: int
    label: str
    phrase: str
    mark: str
    colours: tuple[str, str]
    run: Callable[[Job], Result]
    how: str = ""
    needs: Callable[[Case], tuple[Cell, ...]] = lambda case: ()
    settings: Callable[[Case], Json] = lambda case: {}
    recipe: Literal["recipe", "finetune", ""] = "recipe"
    capped: bool = False
    shape: Literal["full", "pruned", "built"] = "pruned"
    from_scratch: bool = False
    compared_with: tuple[str, ...] = ()
    label_of: Callable[[StudyPruning], str] | None = None

    def cell(self, case: Case) -> Cell:
        """Returns the cell of a case: it names only what its result depends on, so that cases share it where they can.

        A network of full width depends on the pruning only where the method takes part in training, and a built one
        only where it needs pruned ones; else the budget says all.
        """
        study, needs, pruning = case.study, self.needs(case), case.pruning
        settings: dict[str, Any] = {"seed": case.seed + (SCRATCH_SEED if self.from_scratch else 0)}
        if self.recipe:
            settings["recipe"] = dict(getattr(study, self.recipe))
        if self.recipe and study.speed:
            settings["speed"] = dict(study.speed)
        if self.capped:
            settings["cap"] = study.cap
        if case.network in study.selectors:
            settings["selectors"] = True
        matters = pruning is not None and (pruning.trained if self.shape == "full" else bool(needs))
        return Cell(
            self.name,
            case.network,
            case.data,
            case.seed,
            method=pruning.method if pruning and matters else "none",
            budget=dict(pruning.budget) if pruning and self.shape != "full" else {},
            settings={**settings, **self.settings(case)},
            needs=needs,
        )

    def labelled(self, pruning: StudyPruning | None) -> str:
        """Returns its label in the rows of a pruning."""
        return self.label_of(pruning) if self.label_of and pruning else self.label
