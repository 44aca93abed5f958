"""The report: one page without outside references, the same every time, that holds its own data."""

import io
import json
import re
from html.parser import HTMLParser
from xml.etree.ElementTree import fromstring as parse_xml

import pytest
from rich.console import Console

from report_results import LABELS, make_results
from topiarist.deploy import Bench, Setting
from topiarist.deploy.benchmark.values import Network, Reading
from topiarist.errors import TopiaristError
from topiarist.pruning import Point, Sensitivity
from topiarist.report import arm_styles, figures, formatting, render, save_bench, save_sensitivity, show, write_report
from topiarist.studies import read_results, write_results


class Page(HTMLParser):
    """What a page refers to, its ids, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.scripts, self._script = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
        if tag == "script":
            self._script = dict(attributes).get("id", "code")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the report of a small study."""
    folder, results = tmp_path_factory.mktemp("report"), make_results()
    write_results(folder, results)
    return write_report(folder, results).parent


@pytest.fixture(scope="module")
def text(folder):
    """The page of a small study."""
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside(text):
    page = Page(text)
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert "://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", text))


def test_the_page_holds_its_data(folder, text):
    results = make_results()
    assert json.loads(Page(text).scripts["results"]) == results
    assert read_results(folder) == results
    assert text.index(formatting.unbroken(results["conclusion"][0])) < text.index("<table")


def test_the_same_results_give_the_same_page(text):
    assert render(make_results()) == text


def test_ids_are_unique_and_references_to_them_meet_one(text):
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)


def test_figures_take_the_colours_of_the_page(text):
    assert not any(colour in text for colour in arm_styles.COLOURS.values())
    assert all(f"var(--{arm.replace('_', '-')})" in text for arm in LABELS)


def test_names_cannot_break_the_page():
    results = make_results("</script><script>alert(1)</script>")
    page = Page(render(results))
    assert set(page.scripts) == {"results", "code"}
    assert json.loads(page.scripts["results"]) == results
    assert "alert(1)" not in page.scripts["code"]


def test_names_cannot_steer_the_terminal():
    hostile = "[/bold] \x1b[31m \x07 [red]"
    results = make_results(hostile)
    for entry in results["rows"]:
        entry |= {"network": hostile, "label": hostile}
    results["failed"] = {hostile: hostile}
    out = io.StringIO()
    show(results, Console(file=out, width=200))
    assert "[/bold]" in out.getvalue()
    assert out.getvalue().replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["$x_{$", "a$b$c", r"\frac{$", "\x01 \x08", "half \ud83d", "", "%s{0}", "<&>"])
@pytest.mark.by_day(3)
def test_figures_show_names_as_they_are_written(name, tmp_path):
    results = make_results(name)
    for entry in results["rows"]:
        entry |= {"network": name, "label": name, "widths": {name: [3.0, 8], f"{name}.b": [5.0, 8]}}
    texts = [draw_all(render(results))]
    points = tuple(Point(group, name, 8, 0.5, 4, 40.0, 1.0) for group in (name, f"{name}.b"))
    save_sensitivity(Sensitivity("l1", "digits", 10, 50.0, 1.0, points, 2), tmp_path / "it.svg")
    measured = Bench((Network(name, 3),), (Reading(name, Setting("torch", 1, 1)),), False, {})
    save_bench(measured, tmp_path / "other.svg")
    texts += [draw_all((tmp_path / file).read_text()) for file in ("it.svg", "other.svg")]
    assert all(formatting.printable(name) in text for text in texts)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["it.svg", "other.svg"]


def draw_all(page):
    """Reads every drawing in a page as a browser does; returns their texts."""
    roots = [parse_xml(drawing) for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert roots
    return "\n".join(text for root in roots for text in root.itertext())


@pytest.mark.usefixtures("blank_figures")
def test_half_a_character_is_written_as_a_whole_one(tmp_path):
    results = make_results()
    results["title"] = "half \ud83d of it"
    assert "half ? of it" in write_report(tmp_path, results).read_text(encoding="utf-8")


def test_results_with_holes_are_still_told():
    results = make_results()
    for entry in results["rows"]:
        entry |= dict.fromkeys(("macs", "params", "macs_ratio", "params_ratio", "bytes", "epochs", "latency_ms"))
        entry["accuracy"] = {"mean": None, "std": None, "n": 0, "seeds": {}}
    results["comparisons"] = []
    results["failed"] = {"digits-l1": "it broke: mend it."}
    assert "it broke: mend it." in render(results)
    show(results, Console(file=io.StringIO(), width=80))


@pytest.mark.parametrize("count", [1, 12, 60])
def test_any_number_of_groups_can_be_drawn(count):
    assert "<svg" in figures.widths({f"layer{n}.conv": [n + 0.5, 2 * n + 1] for n in range(count)}, "units", "widths")


def test_the_terminal_shows_the_whole_table_in_80_columns():
    results = make_results("magnitude")
    for entry in results["rows"]:
        entry["goal"] = entry["goal"] and "10 % of weights"
    out = io.StringIO()
    show(results, Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "97.10 ± 0.20" in text
    assert "0.55 ms" in text
    assert results["conclusion"][0].split(".")[0][:40] in text


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (formatting.count(7), "7"),
        (formatting.count(999.9), "1 k"),
        (formatting.count(45_678), "45.7 k"),
        (formatting.count(1_234_567), "1.23 M"),
        (formatting.count(999_400), "999 k"),
        (formatting.count(15_300_000_000), "15.3 G"),
        (formatting.count(None), "–"),
        (formatting.size(512), "512 B"),
        (formatting.size(182_712), "183 kB"),
        (formatting.percent(0.4987), "50 %"),
        (formatting.percent(0.054), "5.4 %"),
        (formatting.milliseconds(0.5478), "0.55 ms"),
        (formatting.milliseconds(123.4), "123 ms"),
        (formatting.accuracy({"mean": 97.125, "std": None}), "97.12"),
    ],
)
def test_numbers_as_people_read_them(told, wanted):
    assert told == wanted


def test_a_folder_without_results(tmp_path):
    with pytest.raises(TopiaristError, match="no results"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(TopiaristError, match="cannot read the results"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[" * 100_000)
    with pytest.raises(TopiaristError, match="cannot read the results"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(TopiaristError, match="no results of a study"):
        read_results(tmp_path)


@pytest.mark.usefixtures("blank_figures")
def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TopiaristError, match="cannot write"):
        write_report(tmp_path / "file" / "out", make_results())
