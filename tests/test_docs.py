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
from topiarist.studies import Study

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"  # the home of the site, too
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "studies" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = [README, ROOT / "docs" / "results.md", *sorted((ROOT / "docs").glob("taxonomy*.md"))]


def word_count(text: str) -> int:
    """Counts words as ``wc -w`` does."""
    return len(text.split())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_readme_is_short_and_begins_with_a_network_that_everybody_knows() -> None:
    assert word_count(README.read_text(encoding="utf-8")) <= 900
    assert '"torchvision:resnet18"' in blocks(README, "python")[0]


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_no_table_cell_has_more_than_15_words(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert rows
    assert not [cell for row in rows for cell in row.strip("|").split("|") if word_count(cell) > 15]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
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
    home, arms = ((tmp_path / page).read_text(encoding="utf-8") for page in ("index.html", "benchmarks/arms.html"))
    assert "accuracy.png" in home
    assert "Fine-tuning against training from scratch" in arms
