"""The latency of a study's networks: timed together, one reading for one shape, anew where anything is new."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from report_results import make_results
from topiarist.deploy import Bench, Reading, Setting
from topiarist.errors import TopiaristError
from topiarist.measure import Median
from topiarist.report import arm_styles, figures, formatting, markdown, render, show
from topiarist.report.tables import arms_table
from topiarist.studies import Study, gather, merge, run, timing
from topiarist.studies.cells import folder
from topiarist.studies.timing import latency_cells

SETTINGS: dict[str, Any] = {
    "network": "zoo:digitsnet?width=0.25",
    "data": "digits?train=200",
    "seeds": [3],
    "arms": ["finetune", "uniform"],
    "recipe": {"epochs": 0},
    "finetune": {"epochs": 0},
    "prunings": [
        {"method": ["random", "l1"], "budget": {"macs": 0.5}},
        {"method": "magnitude", "budget": {"ratio": 0.5}},
    ],
}

SMALL = {**SETTINGS, "prunings": SETTINGS["prunings"][1:], "arms": ["finetune"]}


class Clock:
    """A bench whose readings are the numbers 1, 2, 3, …, so that whoever shares one is seen."""

    def __init__(self) -> None:
        self.sessions: list[tuple[list[str], list[str]]] = []
        self.count = 0

    def __call__(self, networks: Mapping[str, Any], inputs: Any, targets: Sequence[str], **options: Any) -> Bench:
        self.sessions.append((list(networks), list(targets)))
        readings = [self.reading(name, target) for target in targets for name in networks]
        return Bench((), tuple(readings), False, {})

    def reading(self, name: str, target: str) -> Reading:
        self.count += 1
        return Reading(name, Setting(target, 1, 1), Median(float(self.count), self.count - 0.25, self.count + 0.75, 9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "bench", clock)
    return clock


def rows(results: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {(row["method"], row["arm"]): row for row in results["rows"]}


@pytest.mark.nightly
def test_networks_of_one_shape_share_one_reading(tmp_path: Path, clock: Clock) -> None:
    found = run(Study.of(SETTINGS), tmp_path, quiet=True)
    assert found["failed"] == {}
    ((shapes, targets),) = clock.sessions  # all in one
    of = rows(found)
    assert targets == ["torch"]
    assert len(shapes) == len(set(shapes)) == len({row["latency_ms"] for row in found["rows"]})
    for row in found["rows"]:
        for other in found["rows"]:
            assert (row["shapes"] == other["shapes"]) == (row["latency_ms"] == other["latency_ms"])
    whole, sparse = of["none", "unpruned"], of["magnitude", "pruned"]
    assert sparse["macs"] < whole["macs"]
    assert sparse["latency"] == whole["latency"]  # unstructured: the tensors keep their shapes
    assert of["random", "uniform"]["latency_ms"] == of["l1", "uniform"]["latency_ms"]
    assert whole["latency"]["torch"] == {"value": 1.0, "low": 0.75, "high": 1.75}
    assert whole["latency_ms"] == 1.0


@pytest.mark.nightly
def test_a_finished_study_is_timed_once_and_an_extended_one_anew(tmp_path: Path, clock: Clock) -> None:
    study = Study.of(SETTINGS)
    first = run(study, tmp_path, quiet=True)
    assert run(study, tmp_path, quiet=True)["rows"] == first["rows"]
    assert len(clock.sessions) == 1
    more = replace(study, arms=("finetune", "uniform", "scratch_e"))  # of shapes that are known, but anew all the same
    run(more, tmp_path, quiet=True)
    assert len(clock.sessions) == 1  # Scratch-E shares the cells of the pruned shapes
    wider = Study.of({**SETTINGS, "seeds": [3, 4]})
    before = clock.count
    found = run(wider, tmp_path, quiet=True)
    assert len(clock.sessions) == 2
    readings = json.dumps([row["latency"] for row in found["rows"]])
    assert all(row["latency_ms"] > before for row in found["rows"]), readings


def test_a_lost_reading_has_all_timed_anew(tmp_path: Path, clock: Clock) -> None:
    study = Study.of(SMALL)
    run(study, tmp_path, quiet=True)
    cells = latency_cells(study.cells())
    (folder(tmp_path, cells[1]) / "result.json").unlink()  # of a run that was killed
    before = clock.count
    found = run(study, tmp_path, quiet=True)
    assert found["failed"] == {}
    assert all(row["latency_ms"] > before for row in found["rows"])


@pytest.mark.nightly
def test_an_interrupt_while_timing_leaves_a_study_that_goes_on(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*words: Any, **options: Any) -> Bench:
        return replace(clock(*words, **options), interrupted=True)

    with monkeypatch.context() as patch:
        patch.setattr(timing, "bench", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(Study.of(SMALL), tmp_path, quiet=True)
    assert run(Study.of(SMALL), tmp_path, quiet=True)["failed"] == {}


@pytest.mark.nightly
def test_a_runtime_that_zeros_make_faster_tells_networks_apart_by_them(tmp_path: Path, clock: Clock) -> None:
    study = Study.of({**SETTINGS, "targets": ["torch", "sparse"]})
    run(study, tmp_path, quiet=True)
    assert [targets for _, targets in clock.sessions] == [["torch"], ["sparse"]]
    rows = gather(study, tmp_path)["rows"]
    whole = next(row for row in rows if row["arm"] == "unpruned")
    sparse = next(row for row in rows if row["method"] == "magnitude" and row["arm"] == "finetune")
    assert sparse["latency"]["torch"] == whole["latency"]["torch"]
    assert sparse["latency"]["sparse"] != whole["latency"]["sparse"]


@pytest.mark.nightly
def test_merged_studies_read_equal_shapes_equally(tmp_path: Path, clock: Clock) -> None:
    parts = [Study.of({**SETTINGS, "prunings": [entry]}) for entry in SETTINGS["prunings"]]
    for number, study in enumerate(parts):
        run(study, tmp_path / str(number), quiet=True)
    assert len(clock.sessions) == 2
    found = rows(merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both"))
    assert len(clock.sessions) == 2
    assert found["magnitude", "pruned"]["latency"] == found["none", "unpruned"]["latency"]
    assert all(row["latency_ms"] for row in found.values())
    run(Study.load(tmp_path / "both" / "study.json"), tmp_path / "both", quiet=True)
    assert len(clock.sessions) == 3  # whoever wants all in one session


@pytest.mark.nightly
def test_several_targets_and_one_that_cannot_take_a_network(tmp_path: Path, clock: Clock) -> None:
    pytest.importorskip("onnxruntime")
    run(Study.of(SMALL), tmp_path, quiet=True)
    found = run(Study.of({**SMALL, "targets": ["torch", "onnxruntime"]}), tmp_path, quiet=True)
    assert clock.sessions[1][1] == ["torch", "onnxruntime"]
    assert all(list(row["latency"]) == ["torch", "onnxruntime"] for row in found["rows"])
    page = render(found)
    assert "Accuracy against latency, onnxruntime" in page
    assert "Latency, torch" in arms_table(found).heads

    def unable(name: str, target: str) -> Reading:
        return Reading(name, Setting(target, 1, 1), reason=f"{target} takes no such network")

    clock.reading = unable  # type: ignore[method-assign]
    found = run(Study.of({**SMALL, "targets": ["onnxruntime"]}), tmp_path / "none", quiet=True)
    assert set(found["failed"].values()) == {"onnxruntime takes no such network"}
    assert all(row["latency_ms"] is None for row in found["rows"])


@pytest.mark.nightly
def test_the_networks_of_a_study_are_really_timed(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    study = Study.of({**SMALL, "prunings": SETTINGS["prunings"][:1], "targets": "onnxruntime"})
    found = run(study, tmp_path, quiet=True)
    assert found["failed"] == {}
    for row in found["rows"]:
        assert row["latency"]["onnxruntime"]["low"] <= row["latency_ms"] <= row["latency"]["onnxruntime"]["high"]


@pytest.mark.parametrize(
    ("targets", "told"),
    [(["torhc"], "no target 'torhc': did you mean torch"), ([], "no target; name at least one"), ([3], "text")],
)
def test_targets_that_cannot_be(targets: list[Any], told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        Study.of({**SETTINGS, "targets": targets})


def test_a_damaged_reading_names_its_folder(tmp_path: Path, clock: Clock) -> None:
    study = Study.of(SMALL)
    run(study, tmp_path, quiet=True)
    place = folder(tmp_path, latency_cells(study.cells())[0])
    file = place / "result.json"
    for latency in (3, {"torch": 3}, {"torch": {"value": "a"}}, {"torch": {"low": 1e300}}):
        file.write_text(json.dumps({**json.loads(file.read_text()), "latency": latency}))
        with pytest.raises(TopiaristError, match=f"delete the folder {place} and run"):
            gather(study, tmp_path)


# ---------------------------------------------------------------- what the report shows of it


def timed_results() -> dict[str, Any]:
    results = make_results()
    for number, row in enumerate(results["rows"]):
        row |= {
            "latency_ms": 0.5,
            "latency": {"torch": {"value": 0.5, "low": 0.48, "high": 0.52}},
            "shapes": [str(number)],
        }
    results["rows"][-1]["shapes"] = results["rows"][0]["shapes"]
    return results


def test_the_table_shows_spreads_and_who_reads_as_whom() -> None:
    results = timed_results()
    table = arms_table(results)
    at = table.heads.index("Latency")
    assert {line.cells[at].text for line in table.lines} == {"0.50 ± 0.02 ms"}
    assert [line.cells[at].small for line in table.lines] == [""] * 5 + ["as unpruned"]
    assert "0.50 ± 0.02 ms as unpruned" in markdown.markdown(results)


@pytest.mark.parametrize(("width", "text"), [(120, "0.50 ± 0.02 ms"), (80, " 0.50 ms")])
def test_a_terminal_shows_the_spread_where_it_is_wide(width: int, text: str) -> None:
    out = io.StringIO()
    show(timed_results(), Console(file=out, width=width))
    assert text in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_the_figure_draws_the_interval() -> None:
    rows = timed_results()["rows"]
    bare = [{**row, "latency": {}} for row in rows]
    styles = arm_styles.styles(row["arm"] for row in rows)
    one, other = (figures.tradeoff(each, "latency_ms", styles, "salt") for each in (rows, bare))
    assert one.count("<path") > other.count("<path")


def test_older_results_show_no_spread() -> None:
    table = arms_table(make_results())
    at = table.heads.index("Latency")
    assert {(line.cells[at].text, line.cells[at].small) for line in table.lines} == {("0.55 ms", "")}
    assert list(figures.costs(make_results()["rows"])) == ["macs_ratio", "params_ratio", "latency_ms"]


@pytest.mark.parametrize(
    ("reading", "value", "text"),
    [
        (None, 0.5478, "0.55 ms"),
        ({"low": None, "high": None}, 0.5478, "0.55 ms"),
        ({"low": 11.0, "high": 14.0}, 12.0, "12.0 ± 1.5 ms"),
        ({"low": 0.49, "high": 0.53}, 0.51, "0.51 ± 0.02 ms"),
        ({"low": 0.042, "high": 0.046}, 0.0444, "0.044 ± 0.002 ms"),
        ({}, None, formatting.DASH),
    ],
)
def test_a_latency_and_its_spread(reading: Any, value: float | None, text: str) -> None:
    assert formatting.latency(reading, value) == text
