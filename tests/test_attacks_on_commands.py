"""The attacks on the command line and its terminals, each a few times; ``python attacks/NAME.py`` does more."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "attacks"))

import command_lines
import kills
import terminals


def test_garbage_on_the_command_line():
    assert sum(command_lines.attack(28, seed=1).values()) == 28


@pytest.mark.nightly
def test_terminals_that_take_little():
    assert len(terminals.attack(1, seed=3)) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("command", kills.COMMANDS)
def test_a_killed_command_is_run_again(command):
    kills.attack(2, 0, [command])
