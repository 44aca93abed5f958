"""YAML: studies and configurations, with damaged text and with what YAML alone can do.

Defended: aliases that stand for more values than a file may hold, merges of them, scalars that are not what their tag
says, keys that are no text, dates and numbers that no machine has, deep nesting, and values of the wrong type or size.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import yaml
from harness import attack, forge, mutated

from topiarist.files import read_yaml
from topiarist.studies import Study

STUDY = {
    "title": "a study",
    "network": "zoo:digitsnet?width=0.25",
    "data": "digits:8",
    "seeds": 2,
    "recipe": {"epochs": 1, "lr": 0.05, "schedule": "step", "milestones": [0.5]},
    "finetune": {"epochs": 1},
    "arms": ["finetune", "scratch_e"],
    "prunings": [
        {"method": ["l1", "random"], "budget": {"macs": 0.5}},
        {"method": {"name": "slimming", "lam": 1.0e-3}, "budget": {"macs": 0.5, "exclude": ["conv1"]}},
    ],
}
TEXT = yaml.safe_dump(STUDY)
SCALARS = (
    *(
        "!!timestamp x",
        "!!bool maybe",
        "!!int ''",
        "!!float ''",
        "!!null x",
        "!!binary '%'",
        "!!set {a}",
        "!!str {a: b}",
    ),
    *("2024-13-45", "2024-01-01", "1:99:99", "0x" + "f" * 5000, "1" * 5000, ".inf", ".nan", "1e999", "~", "yes"),
    *("{1: a, b: c}", "{true: a, 2024-01-01: b}", "{? [a] : b}", '"\\ud800"', '"\\0"', "<<: 3", "{<<: [3]}", "="),
    *("[" * 2000, "{a: " * 500, "a: b: c", "!!python/object:os.system x", "%YAML 9.9", "? ? ?", "- - -", "'", "!x y"),
    *("!!str {a: b}", "!!omap [a: b]", "&a [*a]", "&a {b: *a}"),
)


def laughs(random: Random) -> str:
    """Returns a few lines that stand for more values than any memory holds."""
    kind, wide = random.choice(("[{}]", "{{<<: [{}]}}", "{{a: [{}], b: c}}")), random.randint(2, 12)
    first = random.choice(("[x]", "{x: y}", "x" * 5000, "{}", "[]"))
    lines = (f"a{n}: &a{n} {kind.format(', '.join([f'*a{n - 1}'] * wide))}" for n in range(1, random.randint(2, 30)))
    return "\n".join([f"a0: &a0 {first}", *lines, TEXT if random.random() < 0.5 else ""])


def text(random: Random) -> bytes:
    kind = random.randrange(4)
    if kind == 0:
        value = yaml.safe_load(TEXT)
        forge(value, random)
        return yaml.safe_dump(value).encode()
    if kind == 1:
        lines = TEXT.splitlines()
        place = random.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + random.choice(SCALARS)
        return "\n".join(lines).encode()
    return laughs(random).encode() if kind == 2 else mutated(TEXT.encode(), random)


def attempt(random: Random, folder: Path) -> None:
    file = folder / "study.yaml"
    file.write_bytes(text(random))
    if random.random() < 0.5:
        read_yaml(file, "the configuration", "write it again")
    else:
        Study.load(file).as_json()


if __name__ == "__main__":
    attack(attempt, 2_000)
