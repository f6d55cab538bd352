"""What a sweep's record says of where its numbers come from."""

from __future__ import annotations

import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copy

import pytest

import tune.folder.provenance
from trainables.records.schema import Provenance, SweepRecord
from tune.folder.provenance import provenance, version_warnings, warned

PROJECT = Path(__file__).parents[3]


def test_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["mine.yaml", "--set", "search.lora.rank=[4, 8]"]
    monkeypatch.setattr("sys.argv", [str(PROJECT / "tune" / "run.py"), *asked])
    told = "python tune/run.py mine.yaml --set 'search.lora.rank=[4, 8]'"
    assert provenance().command == told
    monkeypatch.setattr("sys.argv", ["/home/me/own.py"])
    assert provenance().command == "python own.py"


def test_changed_versions_are_a_warning() -> None:
    """Of packages that compute; until the first ones are back."""

    def start(**versions: str) -> Provenance:
        return Provenance(created=1, command="", git_commit=None, python="", versions=versions)

    first = start(ray="1", trl="1", peft="1")
    sweep = SweepRecord(sweep_id="s", config={}, provenance=first)
    assert not [*version_warnings(sweep)]
    other = start(ray="2", trl="2", peft="1", datasets="1")
    for again in (sweep.started_again({}, other), sweep.started_again({}, first)):
        again = again.started_again({}, other)
        (told,) = version_warnings(again)
        assert told.startswith("the sweep began with trl 1 (now 2): where these ")
        assert warned(again, told).provenance.warnings == (told,)
        assert not [*version_warnings(again.started_again({}, first))]


def test_commit_is_that_of_a_repository_that_holds_the_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        named = ["-c", "user.name=me", "-c", "user.email=me@here"]
        command = ["git", *named, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message", "somebody's own project")
    installed = tmp_path / ".venv" / "site-packages" / "tune" / "folder"
    installed.mkdir(parents=True)
    spec = spec_from_file_location("_installed", copy(tune.folder.provenance.__file__, installed))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.provenance().git_commit is None
    git("add", "--all")
    git("commit", "--message", "with the code")
    assert module.provenance().git_commit == git("rev-parse", "HEAD")
