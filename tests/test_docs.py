"""What the documentation shows is true: its Python runs, its commands parse, its table is today's, and it builds."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from topiarist import methods
from topiarist.cli import commands
from topiarist.cli.arguments import parse
from topiarist.studies import ARMS, Study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    exec(compile(ast.parse(code), page.name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    """Every ``topiarist`` line of a page has options that exist."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["topiarist"]:
            parse(words[1], getattr(commands, words[1]), words[2:])


def test_yaml_examples_are_what_they_say(tmp_path: Path) -> None:
    options, *studies = blocks(ROOT / "docs" / "cli.md", "yaml")
    (tmp_path / "small.yaml").write_text(options)
    assert parse("prune", commands.prune, ["--config", str(tmp_path / "small.yaml")])["epochs"] is None
    study, *further = map(yaml.safe_load, studies)
    for keys in ({}, *further):
        assert Study.of({**study, **keys}).title == "LeNet-5 on digits"


def test_every_arm_of_a_study_is_explained() -> None:
    """The names in the first column of the table of arms are those of the registry."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| arm \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(ARMS)


def test_the_table_of_methods_is_todays() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generate["readme"]() == (ROOT / "README.md").read_text(encoding="utf-8"), "run python docs/generate.py"


def test_the_site_builds(tmp_path: Path) -> None:
    """In strict mode a broken link or an unknown name is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cards = (tmp_path / "methods.html").read_text(encoding="utf-8")
    assert "Network Slimming" in cards
    assert cards.count('<div class="equation"><math') == len(methods.names())
