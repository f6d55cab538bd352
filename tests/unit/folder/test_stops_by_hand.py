"""Ending one trial by hand: what the user may ask for, and how the driver comes to know of it."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
from builders import record_sweep, running, trial

from tune.cli import OK, main
from tune.folder.ask_to_stop import ask_to_stop
from tune.stops_by_hand import StopsByHand


def owns_sweep() -> None:
    """Raises nothing: no other driver has taken the sweep over."""


class Driver:
    """Looks on a clock of its own; `asked` is what it has asked of the trials, in turn."""

    def __init__(self, folder: Path, *unfinished: int) -> None:
        self.now = 0.0
        self.unfinished: Set[int] = set(unfinished)
        self.asked: list[Set[int]] = []
        ledger = record_sweep(folder, *(running(number) for number in unfinished))
        self.stops = StopsByHand(ledger, self.asked.append, owns_sweep, lambda: self.now)

    def look(self, after: float = 5.0) -> None:
        self.now += after
        self.stops.look(lambda: self.unfinished)


def requests(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "stop").glob("*"))


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_requested_trial_is_asked_until_it_has_ended(tmp_path: Path) -> None:
    driver = Driver(tmp_path, 6, 7)
    driver.look()
    assert driver.asked == []
    ask_to_stop(tmp_path, 7)
    driver.look()
    driver.look()
    assert driver.asked == [{7}, {7}]
    assert driver.stops.asked == {7}
    assert requests(tmp_path) == ["0007"]
    driver.unfinished = {6}
    driver.look()
    assert driver.asked[2:] == [set()]
    assert driver.stops.asked == set()
    assert requests(tmp_path) == []


def test_command_writes_one_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    record_sweep(folder, running(7), trial(8))
    before = snapshot(folder)
    command = ["quickstart", "--set", "name=tiny", "--output-dir", str(tmp_path)]
    assert main([*command, "--stop-trial", "7"]) == OK
    assert snapshot(folder) == before | {folder / "stop" / "0007": b""}
    assert capsys.readouterr().out.startswith("asked: trial 7 ends after its step")
