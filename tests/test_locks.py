"""Two runs and one place: the second is refused in one sentence, and nothing of the first is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from door import FEW, NET, one_sentence, run
from topiarist.errors import TopiaristError
from topiarist.files import atomically, locked, locked_file, remove_drafts

COMMANDS = {
    "train": ["train", NET, "--data", FEW],
    "prune": ["prune", NET, "--data", FEW, "--method", "l1", "--budget.macs", "0.5"],
    "sensitivity": ["sensitivity", NET, "--data", FEW, "--weights", "w.safetensors"],
    "bench": ["bench", NET, "--data", FEW],
    "pattern": ["pattern", "folder"],
    "decompress": ["decompress", "file.tpcf"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.by_day(3)
def test_the_second_run_in_a_folder_is_refused_by_its_name(command, tmp_path, capsys):
    kept = tmp_path / "result.json"
    kept.write_text("of the first")
    with locked(tmp_path):
        said = one_sentence(run(*COMMANDS[command], "--out", tmp_path), capsys)
    assert f"another run is using {tmp_path}: wait until it ends, or choose another folder" in said
    assert kept.read_text() == "of the first"
    assert list(tmp_path.iterdir()) == [kept] or command == "demo"


def test_the_second_run_that_writes_a_file_is_refused_but_not_beside_it(tmp_path, capsys):
    run("train", NET, "--data", FEW, "--epochs", 0, "--out", tmp_path)
    capsys.readouterr()
    out = tmp_path / "model.tpcf"
    with locked_file(out):
        said = one_sentence(run("compress", tmp_path / "model.safetensors", "--out", out), capsys)
        assert f"another run is using {out}" in said
        assert run("compress", tmp_path / "model.safetensors", "--out", tmp_path / "other.tpcf") == 0
    assert run("compress", tmp_path / "model.safetensors", "--out", out) == 0
    assert sorted(file.name for file in tmp_path.glob("*.tpcf")) == ["model.tpcf", "other.tpcf"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("lock", [locked, locked_file])
def test_a_killed_process_leaves_no_lock(lock, tmp_path):
    place = tmp_path if lock is locked else tmp_path / "file"
    code = f"""
import sys
from pathlib import Path
from topiarist.files import {lock.__name__} as lock
with lock(Path({str(place)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(TopiaristError, match="another run is using"), lock(place):
            pass
        other.kill()
    with lock(place):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_was_removed_at_that_moment_counts_as_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "touch", lambda path: None)
    with pytest.raises(TopiaristError, match="another run is using"), locked_file(tmp_path / "file"):
        pass


def test_drafts_of_killed_processes_go_and_no_other_file(tmp_path):
    def killed(draft):
        draft.with_name(draft.name.replace(".a.", ".b.")).touch()

    atomically(tmp_path / "a", killed)
    for name in (".a.draft", ".keep.draft", "x.12345678.draft"):
        (tmp_path / name).touch()
    (left,) = tmp_path.glob(".b.*.draft")
    remove_drafts(tmp_path, "other")
    assert left.exists()
    remove_drafts(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.draft", ".keep.draft", "a", "x.12345678.draft"]
