"""The arms of a study: what is done with every pruning, one file each.

The registry is this folder: every `Arm` that a file of it holds is an arm, in the order that the arms say.
"""

from __future__ import annotations

import importlib
import pkgutil

from topiarist.studies.arms.base import FINETUNE_RECIPE, SCRATCH_SEED, Arm, Case, Terms


def _arms() -> list[Arm]:
    """Returns all arms that the files of this folder hold, in the order of tables."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    held = (value for module in modules for value in vars(module).values() if isinstance(value, Arm))
    return sorted(held, key=lambda arm: arm.order)


ARMS: dict[str, Arm] = {arm.name: arm for arm in _arms()}
"""Name → arm, in the order of tables. ``unpruned`` and ``pruned`` are in every study, for the others build on them."""

PAIRS = tuple((arm.name, other) for arm in ARMS.values() for other in arm.compared_with)
"""Arms of one pruning that are compared seed by seed."""

FROM_SCRATCH = tuple(arm.name for arm in reversed(list(ARMS.values())) if arm.from_scratch and arm.shape == "pruned")
"""The arms that train the pruned shape from scratch; a conclusion rests on the first one that is there."""


def phrase(arm: str) -> str:
    """Returns what a sentence calls an arm, which may be one of other versions."""
    return ARMS[arm].phrase if arm in ARMS else arm


__all__ = ["ARMS", "FINETUNE_RECIPE", "FROM_SCRATCH", "PAIRS", "SCRATCH_SEED", "Arm", "Case", "Terms", "phrase"]
