"""What every test shares: one thread, no display, the two hypothesis profiles, and what waits for the night."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure

torch.set_num_threads(1)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "normal")

_SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("normal", max_examples=8, derandomize=True, **_SHARED)  # the nightly ones draw anew
settings.register_profile("nightly", max_examples=500, **_SHARED)
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out what waits for the night, unless it is night or ``-m`` asks for it by name.

    That is each test marked ``nightly``, and of a test marked ``by_day(n)`` all but n of its cases, evenly chosen.
    """
    if PROFILE == "nightly" or "nightly" in config.getoption("markexpr"):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    by_day = {item for each in cases.values() for item in _by_day(each)}
    config.hook.pytest_deselected(items=[item for item in items if item not in by_day])
    items[:] = [item for item in items if item in by_day]


def _by_day(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Returns those cases of one test that run by day."""
    kept = [item for item in cases if not item.get_closest_marker("nightly")]
    mark = kept[0].get_closest_marker("by_day") if kept else None
    if mark is None or len(kept) <= mark.args[0]:
        return kept
    return [kept[len(kept) * at // mark.args[0]] for at in range(mark.args[0])]


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the figures of reports blank: drawing them costs more than all else that a study of a test does."""
    draw = Figure.savefig

    def savefig(figure: Figure, file: object, **options: object) -> None:
        if hasattr(file, "write"):
            file.write('<svg width="1pt" height="1pt"></svg>')
        else:
            draw(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
