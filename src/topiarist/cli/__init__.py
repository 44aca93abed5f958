"""The command line: ``topiarist COMMAND``, one thin layer over the library's functions.

Exit status: 0 on success, 1 where cells of a study failed, 2 on bad input (one sentence on stderr), 130 when
interrupted, 141 where the reader of a pipe has left; anything else is a bug.
"""

from __future__ import annotations

import errno
import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from topiarist.cli.terminal import PrintError, steady_streams
from topiarist.errors import TopiaristError

COMMANDS = {
    "demo": "train, prune and compare on scikit-learn's digits, and write a report",
    "methods": "list the pruning methods, or show the card and the flags of one",
    "inspect": "show what can be pruned in a network, what cannot, and why",
    "train": "train a network",
    "prune": "prune a network, prove the cut, fine-tune it, write the smaller one",
    "export": "write a network as a file for a runtime, once it computes what torch does",
    "bench": "measure how long networks take on runtimes, side by side, and draw it",
    "sensitivity": "measure how accuracy falls as each group alone is pruned, and draw it",
    "pattern": "average the shapes of pruned networks into a plan for new ones, and draw it",
    "compress": "share weights, train their centroids, and write one small file",
    "decompress": "read such a file, and write the network's tensors and its shape",
    "study": "run the comparison that a YAML file describes",
    "merge": "merge two studies into one",
    "report": "rewrite the report of a study",
}
"""Name → what it does; the functions are in `topiarist.cli.commands`, imported when one is called."""

_AGAIN = "run the same command again: it continues from what is finished"


_LONGEST = 180
"""Characters of a word that a message shows: a value that was given is cut there."""
_ELSEWHERE = "send it elsewhere; files that the command writes are complete"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: the words after ``topiarist``; by default those that it was started with.

    Returns:
        The exit status.
    """
    typed = list(sys.argv[1:] if words is None else words)
    with warnings.catch_warnings(), steady_streams():
        warnings.showwarning = _print_warning
        try:
            status = _run(typed)
            sys.stdout.flush()
        except TopiaristError as error:
            status = _fail(2, str(error))
        except PrintError as lost:
            status = 141 if lost.reader_left else _fail(2, f"cannot print the result ({lost}): {_ELSEWHERE}")
        except OSError as error:
            status = _fail_on_file(error)
        except KeyboardInterrupt as stop:
            status = _fail(130, str(stop) or f"interrupted; {_AGAIN} (but prunes from the first step)")
    return status


def _run(words: list[str]) -> int:
    if not words:
        raise TopiaristError(
            f"no command is given: choose from {', '.join(COMMANDS)}; `topiarist --help` describes them"
        )
    name, *rest = words
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"topiarist {version('topiarist')}")
        return 0
    if name not in COMMANDS:
        from topiarist.files import shown, suggestion

        raise TopiaristError(f"there is no command {shown(name)}: {suggestion(name, COMMANDS)}")
    command = getattr(importlib.import_module("topiarist.cli.commands"), name)
    try:
        values = importlib.import_module("topiarist.cli.arguments").parse(name, command, rest)
    except SystemExit as leaving:  # --help and --print_config have printed their text
        return int(leaving.code or 0)
    return command(**values) or 0


def _usage() -> str:
    lines = ["Topiarist cuts trained PyTorch networks into smaller shapes, and proves the cut.", ""]
    lines += ["usage: topiarist COMMAND ...", ""]
    lines += [f"  {name:<13}{summary}" for name, summary in COMMANDS.items()]
    lines += ["", "`topiarist COMMAND --help` lists the options of a command."]
    return "\n".join(lines)


def _fail(status: int, sentence: str) -> int:
    words = (word if len(word) <= _LONGEST else f"{word[: _LONGEST - 3]}..." for word in sentence.split())
    line = " ".join(words)
    print(f"topiarist: {line}" + ("" if line.endswith((".", "?")) else "."), file=sys.stderr)
    return status


def _fail_on_file(error: OSError) -> int:
    """Reports a file that cannot be read or written as bad input."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(2, f"the disk is full ({error.strerror}): make room, then {_AGAIN}")
    if error.filename is None:
        raise error
    return _fail(2, f"cannot use {error.filename} ({error.strerror}): check the path and its permissions")


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"topiarist: warning: {' '.join(str(message).split())}", file=sys.stderr)
