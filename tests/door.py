"""The command line's front door, for the tests that go through it."""

import pytest

from topiarist.cli import main

NET = "zoo:digitsnet?width=0.25"
FEW = "digits?train=200"  # so that an epoch takes a moment
SHAPE = "1x8x8"


def run(*words: object) -> int:
    """The exit status of a command."""
    return main([str(word) for word in words])


def one_sentence(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command said, which must be a single sentence on stderr."""
    told = capsys.readouterr()
    assert status == 2, told.err
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("topiarist: ")
    assert told.err.endswith((".\n", "?\n"))
    assert "Traceback" not in told.err
    return told.err
