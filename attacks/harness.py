"""What all attacks share: how files are mutated, and what must hold whatever is in them.

An attempt may end in a value or a `TopiaristError` of one sentence. Any other exception, 10 s of processor time, and
memory beyond the limit of Topiarist (256 MiB) end the attack with the number of the attempt.
"""

from __future__ import annotations

import argparse
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch

from topiarist.errors import TopiaristError
from topiarist.files import ALLOWANCE

SECONDS, LONGEST = 10, 1000
"""Of processor time, and characters of a sentence."""
EXTREME: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**40, 2**63, -(2**63), 10**30, 10**300, 0.5, -1e308, 1e-320),
    *("", "x", "__class__", "\u0000", "a.b", "9" * 5000, "é" * 300, [], {}, [[]], [0, 0, 0], {"": []}),
)
"""What stands in the place of a value."""

Attempt = Callable[[Random, Path], object]
"""Mutates a file, in a folder of its own, and reads it."""


def attack(attempt: Attempt, count: int) -> None:
    """Runs an attack with the count and the seed of the command line."""
    parser = argparse.ArgumentParser(description=f"Attacks {attempt.__module__}.")
    parser.add_argument("--count", type=int, default=count, help="attempts")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    words = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that a file has no checksum, among others
    signal.signal(signal.SIGVTALRM, _stop)
    folder, refused, start = Path(tempfile.mkdtemp(prefix="attack-")), 0, time.process_time()
    for warm_up in range(10):  # imports and caches are no part of what a file costs
        with suppress(TopiaristError):
            attempt(Random(warm_up), folder)
    before = _memory()
    for number in range(words.count):
        random = Random(f"{words.seed} {number}")
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            attempt(random, folder)
        except TopiaristError as error:
            refused += 1
            assert "\n" not in str(error), error
            assert 10 < len(str(error)) < LONGEST, error
        except BaseException as error:
            error.add_note(f"attempt {number} of seed {words.seed}; its files are in {folder}")
            raise
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if number % 50 == 0 or number == words.count - 1:
            taken = _memory() - before
            assert taken <= ALLOWANCE, f"about attempt {number}: {taken:,} bytes"
    each = 1000 * (time.process_time() - start) / max(1, words.count)
    print(f"{words.count} attempts, {refused} refused, {each:.2f} ms each, {(_memory() - before) >> 20} MiB at most")


def _stop(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _memory() -> int:
    """Returns the most memory that this process has held, in bytes; not what its parent held, where the system says."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mutated(data: bytes, random: Random) -> bytes:
    """Returns data with changed bits or octets, with a part removed, inserted, repeated, moved or cut off."""
    made = bytearray(data)
    a, b = sorted(random.choices(range(len(data) + 1), k=2))
    kind = random.randrange(7)
    if kind == 0:
        return flipped(data, random, random.randint(1, 8))
    if kind == 1 and a < len(data):
        made[a] = random.choice((0, 9, 10, 34, 127, 128, 255))
    elif kind == 2:
        del made[a:b]
    elif kind == 3:
        made[a:a] = random.randbytes(random.randint(1, 8))
    elif kind == 4:
        made[a:a] = made[a:b]
    elif kind == 5:
        made = made[b:] + made[a:b] + made[:a]
    else:
        del made[a:]
    return bytes(made)


def flipped(data: bytes, random: Random, count: int = 1) -> bytes:
    """Returns data in which so many bits have changed."""
    made = bytearray(data)
    for place in random.sample(range(8 * len(data)), count):
        made[place // 8] ^= 1 << place % 8
    return bytes(made)


def forge(value: Any, random: Random) -> None:
    """Changes plain values in place: one is replaced by an extreme one, removed, doubled, or exchanged for another."""
    places = list(_places(value))
    for _ in range(random.randint(1, 3)):
        holder, key = random.choice(places)
        other, there = random.choice(places)
        kind = random.randrange(5)
        try:
            if kind == 0:
                del holder[key]
            elif kind == 1:
                holder[key], other[there] = other[there], holder[key]
            elif kind == 2:
                holder[key] = [holder[key], holder[key]]
            elif kind == 3 and type(holder[key]) in (int, float):
                holder[key] = holder[key] * random.choice((-1, 2, 1000, 2**20)) + random.choice((-1, 0, 1))
            else:
                holder[key] = random.choice(EXTREME)
        except (LookupError, OverflowError):  # removed before, or too large for a fraction
            continue


def _places(value: Any) -> Any:
    """Yields each place in plain values: its mapping or list, and its key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
