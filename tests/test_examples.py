"""Every example runs as it stands."""

from __future__ import annotations

import runpy
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from topiarist import TopiaristError
from topiarist.models import import_torchvision

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


NEEDS = {"lightning_loop": ("lightning",), "trainer_loop": ("transformers", "accelerate")}
"""What an example imports that topiarist itself does not."""


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] if path.stem in NEEDS else []) for path in EXAMPLES],
)
@pytest.mark.filterwarnings("default")
def test_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := [name for name in NEEDS.get(path.stem, ()) if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    if path.stem in NEEDS:
        with warnings.catch_warnings(), suppress(TopiaristError):
            warnings.simplefilter("ignore")
            import_torchvision()  # which both import, and which may be built for another torch
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
