"""What the documentation takes from the code and the benchmarks: tables of techniques, and a page for each method.

mkdocs loads this file as a hook. Run by itself, it writes the tables into the pages: ``python docs/generate.py``.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import measured  # noqa: E402  beside this file, wherever mkdocs or a test runs it from

PAGES = ("methods.md", "taxonomy.md", "taxonomy.ko.md")
BLOCK = re.compile(r"(<!-- generated: (\w+)(?: (\w+))? -->\n).*?(<!-- generated: end -->)", re.DOTALL)
TARGETS = {
    "predefined": "predefined: you say how much of each layer is kept",
    "automatic": "automatic: the method decides how much of each layer is kept",
}
HEAD = {
    "en": "| technique | method | prunes | cost | result | command |",
    "ko": "| 기법 | 메서드 | 대상 | 비용 | 결과 | 명령 |",
}
EACH = {
    "en": "Unpruned: VGG-11 {0}, ResNet-20 {1}. Random pruning: VGG-11 {2} → {4}, ResNet-20 {3} → {5}.",
    "ko": "가지치기 전: VGG-11 {0}, ResNet-20 {1}. 무작위: VGG-11 {2} → {4}, ResNet-20 {3} → {5}.",
}


@cache
def techniques() -> dict[str, Any]:
    """Returns what docs/techniques.yaml says."""
    return yaml.safe_load((ROOT / "docs" / "techniques.yaml").read_text(encoding="utf-8"))


def family_of(name: str) -> dict[str, Any]:
    """Returns the entry of one family; one that the file lacks has no text and no techniques."""
    found = [family for family in techniques()["families"] if family["name"] == name]
    return found[0] if found else {"name": name, "ko": name, "text": "", "text_ko": "", "techniques": []}


def capitalised(title: str) -> str:
    """Returns the title with a capital at its start."""
    return title[:1].upper() + title[1:]


def techniques_of(method: str) -> list[dict[str, Any]]:
    """Returns the techniques that one method runs."""
    return [each for family in techniques()["families"] for each in family["techniques"] if each["method"] == method]


def command(method: str, technique: dict[str, Any] | None = None) -> str:
    """Returns a command that runs a method, or a technique of it."""
    from topiarist import methods

    if technique and "command" in technique:
        return technique["command"]
    if methods.get(method).granularity == "weight":
        return (
            "topiarist prune zoo:lenet300 --data digits:28 --train.epochs 4 --train.lr 0.02 "
            f"--method {method} --budget.ratio 0.2 --epochs 2"
        )
    return (
        f"topiarist prune zoo:digitsnet --data digits --train.epochs 4 --method {method} --budget.macs 0.5 --epochs 2"
    )


# --- tables and lists in pages -----------------------------------------------------------------------------------


def taxonomy(language: str = "en", *, links: bool = False) -> str:
    """Returns a heading, a sentence and a table for each family."""
    lines = []
    for family in techniques()["families"]:
        korean = language == "ko"
        title = family["ko"] if korean else capitalised(family["name"])
        lines += [f"### {title}", "", family["text_ko" if korean else "text"], ""]
        lines += [HEAD[language], "|---|---|---|---|---|---|"]
        lines += [row(technique, language, links=links) for technique in family["techniques"]] + [""]
    return "\n".join(lines)


def row(technique: dict[str, Any], language: str, *, links: bool) -> str:
    """Returns a table's row for one technique."""
    from topiarist import methods

    korean = language == "ko"
    name = technique["ko" if korean else "name"]
    shown = f"[{name}]({technique['url']})" if "url" in technique else name
    method, units, target = technique["method"], technique["unit"], methods.get(technique["method"]).target
    if korean:
        units, target = techniques()["units"][units], techniques()["targets"][target]
    here = technique.get("here_ko" if korean else "here", f"`{method}`")
    if links:
        here = here.replace(f"`{method}`", f"[`{method}`](methods/{method}.md)")
    words = measured.KO if korean else measured.EN
    cost, result = measured.in_short(words, technique.get("measured"), method)
    run = f"`{command(method, technique)}`"
    return f"| {shown}, {technique['paper']} | {here} | {units}; {target} | {cost} | {result} | {run} |"


def reference(language: str = "en", *, links: bool = False) -> str:
    """Returns a sentence with what the structured results are to be compared with."""
    half = [(network, budget) for network, budget in measured.settings() if budget == 0.5]
    before = [fmean(measured.unpruned(network)) for network, _ in half]
    chance = [
        fmean(measured.accuracy(measured.pruned("random", *place), when))
        for when in ("before", "after")
        for place in half
    ]
    return EACH[language].format(*(f"{value:.1f}" for value in [*before, *chance])) + "\n"


def index(language: str = "en", *, links: bool = False) -> str:
    """Returns a list of the methods, a heading for each family."""
    from topiarist import methods

    lines = []
    for family, names in methods.families().items():
        lines += [
            f"## {capitalised(family)}",
            "",
            *([family_of(family)["text"], ""] if family_of(family)["text"] else []),
        ]
        for name in names:
            method = methods.describe(name)
            shown = f"[`{name}`](methods/{name}.md)" if links else f"`{name}`"
            kind = {"structure": "structured", "weight": "unstructured"}[method["granularity"]]
            facts = f"{kind}, {method['target']}; needs {', '.join(method['needs']) or 'nothing'}"
            lines.append(f"- {shown} ({facts}): {method['summary']} *{method['paper']}.*")
        lines.append("")
    return "\n".join(lines)


def filled(markdown: str, *, links: bool = False) -> str:
    """Returns a page with its generated blocks as they are today."""
    made = {"taxonomy": taxonomy, "reference": reference, "index": index}
    return BLOCK.sub(lambda found: found[1] + made[found[2]](found[3] or "en", links=links) + found[4], markdown)


# --- a page for each method ----------------------------------------------------------------------------------------


def page(name: str) -> str:
    """Returns the page of one method: card, formula, command, what it cost and gave, and its docstring."""
    from topiarist import methods

    method = methods.describe(name)
    anchor = re.sub(r"\W+", "-", method["family"].lower()).strip("-")
    mine = techniques_of(name)
    papers = [f"[{each['name']}]({each['url']})" for each in mine if "url" in each]
    kind = {"structure": "structured (units of layers)", "weight": "unstructured (individual weights)"}
    known = family_of(method["family"])["techniques"]
    family = f"[{method['family']}](../taxonomy.md#{anchor})" if known else method["family"]
    facts = {
        "Family": family,
        "Prunes": kind[method["granularity"]],
        "Target architecture": TARGETS[method["target"]],
        "Needs": ", ".join(method["needs"]) or "nothing",
        "Roles": ", ".join(method["roles"]),
        "Paper": method["paper"],
    }
    if papers:
        facts["To read"] = ", ".join(papers)
    kind_ = methods.get(name)
    parts = [f"# {name}", method["summary"], "\n".join(f"- **{key}**: {value}" for key, value in facts.items())]
    if method["formula"]:
        parts += ["## Formula", equation(method["formula"])]
    parts += ["## Run it", "```sh\n" + "\n".join(commands(name)) + "\n```"]
    parts += ["## What it cost and gave", gave(name)]
    parts += ["## Options and details", f"::: {kind_.__module__}.{kind_.__qualname__}"]
    return "\n\n".join(parts) + "\n"


def commands(name: str) -> list[str]:
    """Returns the commands of a method's page, each broken where a telephone's screen ends."""
    found = [command(name, each) for each in techniques_of(name) if "here" not in each] or [command(name)]
    return [re.sub(r" (?=--)", " \\\n    ", each) for each in dict.fromkeys(found)]


def equation(formula: str) -> str:
    """Returns the equation in MathML, which browsers render without a script; it scrolls where it is too wide."""
    from latex2mathml.converter import convert

    return f'<div class="equation" style="overflow-x: auto">{convert(formula, display="block")}</div>'


def gave(name: str) -> str:
    """Returns all measurements of a method as a list; where it was below random pruning, the list says so."""
    lines = []
    for technique in techniques_of(name):
        if technique.get("measured") not in (None, "structured"):
            cost, result = measured.in_short(measured.EN, technique["measured"], name)
            lines.append(f"**{technique['name']}** on mnist: {result}; {cost}.")
        lines += technique.get("notes", [])
    lines += measured.at_length(name)
    if not lines:
        return "Not measured on our benchmarks."
    scripts = (
        "Accuracy and error are of test images, mean ± standard deviation over seeds. [How](../taxonomy.md#numbers)."
    )
    return "\n".join([scripts, "", *(f"- {line}" for line in lines)])


# --- hooks of mkdocs -----------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Replaces the entry ``methods/`` of the navigation by the pages of the methods, family by family."""
    from topiarist import methods

    def expanded(entry: Any) -> Any:
        if entry == "methods/":
            return [{family: [f"methods/{name}.md" for name in names]} for family, names in methods.families().items()]
        if isinstance(entry, dict):
            return {title: expanded(below) for title, below in entry.items()}
        return [expanded(below) for below in entry] if isinstance(entry, list) else entry

    config.nav = expanded(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the methods."""
    from mkdocs.structure.files import File

    from topiarist import methods

    for name in methods.names():
        files.append(File.generated(config, f"methods/{name}.md", content=page(name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in what the page's comments ask for."""
    included = re.sub(r"<!-- include: (\S+) -->", lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), markdown)
    return filled(included, links=True)


if __name__ == "__main__":
    for each in PAGES:
        path = ROOT / "docs" / each
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
