"""What the documentation shows is true: its Python runs, its commands parse, its table is today's, and it builds."""

import ast
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import topiarist
from topiarist import TopiaristError, methods
from topiarist.cli import commands
from topiarist.cli.arguments import parse
from topiarist.deploy import target_names
from topiarist.integrations.huggingface import library
from topiarist.studies import ARMS, Study

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"  # the home of the site, too
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "studies" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = [README, ROOT / "docs" / "results.md", *sorted((ROOT / "docs").glob("taxonomy*.md"))]


def word_count(text: str) -> int:
    """Counts words as ``wc -w`` does."""
    return len(text.split())


GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


LONG = ("compress", "guided", "how", "lasso", "onnxruntime")
SLOW = {page for page in PAGES if ".ko." in page.name or page.stem in LONG}
"""Pages whose examples wait for the night."""
TRANSLATIONS = {page: page.name.replace(".ko.", ".") for page in PAGES if ".ko." in page.name}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def import_transformers() -> None:
    """Imports it as topiarist does, with a torchvision that was built for another torch as well."""
    try:
        library.transformers()
    except TopiaristError as error:
        pytest.skip(str(error))


def test_the_readme_is_short_and_begins_with_a_network_that_everybody_knows() -> None:
    assert word_count(README.read_text(encoding="utf-8")) <= 900
    assert '"torchvision:resnet18"' in blocks(README, "python")[0]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
def test_the_first_example_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys) -> None:
    """All of it, in order, but for the rows of the table that are left out and the last digits of the proof."""
    monkeypatch.chdir(tmp_path)
    exec(blocks(README, "python")[0], {"__name__": "example"})
    printed, shown = (_words(text) for text in (capsys.readouterr().out, blocks(README, "text")[0]))
    before, after = shown.split(" ... ")
    assert printed.startswith(before)
    assert printed.endswith(after)


def _words(text: str) -> str:
    """Returns the words of a printed table and what stands below, without lines and the digits of rounding noise."""
    return " ".join(re.sub(r"\d\.\de-1\d", "0", re.sub(r"[─-╿]", " ", text)).split())


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_no_table_cell_has_more_than_15_words(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert rows
    assert not [cell for row in rows for cell in row.strip("|").split("|") if word_count(cell) > 15]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.nightly] if page in SLOW else [])
        for page in PAGES
        if blocks(page, "python")
    ],
)
@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "transformers" in "".join(blocks(page, "python")):
        import_transformers()
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(blocks(page, "python")))  # a file, since sizes are corrected in their source
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_shows_the_same_python(page: Path) -> None:
    """The same program, but for its comments and the words that it prints."""
    here, there = (ast.parse("\n".join(blocks(each, "python"))) for each in (page, page.with_name(TRANSLATIONS[page])))
    for node in (*ast.walk(here), *ast.walk(there)):
        if isinstance(node, ast.JoinedStr):
            node.values = [value for value in node.values if isinstance(value, ast.FormattedValue)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    assert ast.dump(here) == ast.dump(there)


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


def test_every_public_name_is_on_the_page_of_the_library() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    values = {name: getattr(topiarist, name) for name in topiarist.__all__ if name != "__version__"}
    public = {name: value for name, value in values.items() if not inspect.ismodule(value)}
    assert {f"{'.'.join(value.__module__.split('.')[:2])}.{name}" for name, value in public.items()} <= listed


def test_every_runtime_is_listed() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    listed = re.search(r"^\| `--targets` \| (.*), with commas", page, re.MULTILINE)
    assert listed is not None
    assert sorted(re.findall(r"`([\w.]+)`", listed[1])) == target_names()


def test_every_arm_of_a_study_is_explained() -> None:
    """The names in the first column of the table of arms are those of the registry."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| arm \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(ARMS)


@pytest.mark.parametrize("name", GENERATE["PAGES"])
def test_the_table_of_methods_is_todays(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert GENERATE["filled"](page) == page, "run python docs/generate.py"


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.by_day(1)
def test_the_taxonomy_has_a_row_and_a_command_for_each_method(language: str) -> None:
    tables = [line.strip("| ").split(" | ") for line in GENERATE["taxonomy"](language).splitlines() if line[:2] == "| "]
    rows = [cells for cells in tables if "`" in cells[1]]
    assert all(len(re.sub(r"\]\(\S*\)", "]", cell).split()) <= 15 for cells in rows for cell in cells)
    assert {re.findall(r"`(\w+)`", cells[1])[0] for cells in rows} == set(methods.names())
    for cells in rows:
        words = shlex.split(cells[-1].strip("`"))
        parse(words[1], getattr(commands, words[1]), words[2:])


def test_the_families_of_the_taxonomy_are_those_of_the_methods() -> None:
    stated = {
        family["name"]: {technique["method"] for technique in family["techniques"]}
        for family in GENERATE["techniques"]()["families"]
    }
    assert list(stated) == list(methods.families())
    assert stated == {family: set(names) for family, names in methods.families().items()}


@pytest.mark.nightly
def test_the_site_builds(tmp_path: Path) -> None:
    """In strict mode a broken link or an unknown name is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "methods").glob("*.html")}
    assert sorted(pages) == methods.names()
    assert "Network Slimming" in pages["slimming"]
    assert all(page.count('<div class="equation"') == page.count("<math") == 1 for page in pages.values())
    for page in ("methods", "taxonomy", "taxonomy.ko"):
        assert all(f"methods/{name}.html" in (tmp_path / f"{page}.html").read_text(encoding="utf-8") for name in pages)
    home, arms = ((tmp_path / page).read_text(encoding="utf-8") for page in ("index.html", "benchmarks/arms.html"))
    assert "accuracy.png" in home
    assert "Fine-tuning against training from scratch" in arms
