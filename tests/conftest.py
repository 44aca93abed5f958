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
settings.register_profile("normal", max_examples=15, derandomize=True, **_SHARED)  # the nightly ones draw anew
settings.register_profile("nightly", max_examples=500, **_SHARED)
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests marked ``nightly`` out, unless it is night or ``-m`` asks for them by name."""
    if PROFILE == "nightly" or "nightly" in config.getoption("markexpr"):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=nightly)
    items[:] = [item for item in items if item not in nightly]


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
