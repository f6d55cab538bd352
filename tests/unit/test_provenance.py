"""What a sweep's record says of where its numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.folder.provenance import provenance

PROJECT = Path(__file__).parents[2]


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["mine.yaml", "--set", "search.lora.rank=[4, 8]"]
    monkeypatch.setattr("sys.argv", [str(PROJECT / "tune" / "run.py"), *asked])
    told = "python tune/run.py mine.yaml --set 'search.lora.rank=[4, 8]'"
    assert provenance().command == told
    monkeypatch.setattr("sys.argv", ["/home/me/own.py"])
    assert provenance().command == "python own.py"
