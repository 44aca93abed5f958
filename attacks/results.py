"""The results of a study, ``results.json``: damaged text and forged values, read for a report.

Defended: depth, numbers that are not finite or too large, keys that are missing and values of another type. A report is
drawn of what is accepted, so that no number may make it endless.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

from harness import attack, forge, mutated

from topiarist.report import rewrite
from topiarist.studies import results_of


def row(arm: str, mean: float) -> dict[str, Any]:
    """Returns a row of the table."""
    sizes = {"macs": 1e6, "params": 4e4, "macs_ratio": 0.5, "params_ratio": 0.5, "bytes": 1e5}
    costs = {"epochs": 16.0, "seconds": 3.0, "latency_ms": 0.5, "proof": None, "cells": {}}
    names = {"network": "zoo:digitsnet", "data": "digits", "method": "l1", "goal": "50 % of MACs"}
    accuracy = {"mean": mean, "std": 0.2, "n": 2, "seeds": {"0": mean - 0.2, "1": mean + 0.2}}
    if arm == "unpruned":
        names |= {"method": "none", "goal": ""}
    return names | sizes | costs | {"arm": arm, "label": arm, "accuracy": accuracy, "widths": {"conv1": [8.5, 16]}}


PAIR = {key: row("finetune", 97.1)[key] for key in ("network", "data", "method", "goal")} | {
    "when": "",
    "a": "finetune",
    "b": "pruned",
    **dict.fromkeys(("mean", "low", "high", "level"), 0.5),
    "n": 2,
    "significant": False,
    "verdict": "no significant difference",
}
RESULTS = {
    "topiarist": "0.1.0",
    "title": "a study",
    "study": {"seeds": [0, 1], "prunings": [], "recipe": {"epochs": 1}, "finetune": {}, "cap": 2.0},
    "note": "",
    "conclusion": ["one sentence"],
    "rows": [row("unpruned", 97.8), row("pruned", 41.0), row("finetune", 97.1)],
    "overall": [],
    "comparisons": [PAIR],
    "failed": {},
    "environment": {"python": "3.11", "torch": "2.6", "machine": "x", "system": "Linux", "processors": 2},
}


def attempt(random: Random, folder: Path) -> None:
    if random.random() < 0.6:
        values = copy.deepcopy(RESULTS)
        forge(values, random)
        text = json.dumps(values).encode()
    else:
        text = mutated(json.dumps(RESULTS).encode(), random)
    (folder / "results.json").write_bytes(text)
    results_of(folder)
    if random.random() < 0.05:  # which takes a second
        rewrite(folder)


if __name__ == "__main__":
    attack(attempt, 500)
