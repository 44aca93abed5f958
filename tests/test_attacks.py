"""No file is believed that is damaged or hostile: the attacks, with a small count by day and a large one at night."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from networks import NIGHT

FOLDER = Path(__file__).parents[1] / "attacks"
COUNTS = {
    "architecture": (200, 100_000),
    "checkpoint": (20, 2_000),
    "container": (200, 50_000),
    "results": (100, 5_000),
    "weights": (200, 80_000),
    "yaml_files": (100, 10_000),
}
"""Attempts by day and by night, in less than two minutes each."""
ON_COMMANDS = {"command_lines", "kills", "terminals"}
"""Those of `test_attacks_on_commands`."""


def test_every_attack_has_a_count_and_says_what_is_defended() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py") if path.stem != "harness"}
    assert scripts.keys() == COUNTS.keys() | ON_COMMANDS
    assert all("\nDefended: " in text for text in scripts.values())


BY_NIGHT = {"checkpoint", "container", "results", "yaml_files"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.nightly] * (n in BY_NIGHT)) for n in COUNTS])
@pytest.mark.by_day(2)
def test_an_attack_fails(name: str) -> None:
    words = [sys.executable, FOLDER / f"{name}.py", "--count", str(COUNTS[name][NIGHT]), "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{COUNTS[name][NIGHT]} attempts, " in done.stdout
