"""What is on disk survives crashes at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import measurement, running, trial

from trainables.errors import Fault, UserError
from trainables.records.item_records import items_file
from trainables.records.ledger import Ledger
from trainables.records.schema import (
    ItemScore,
    Measurement,
    TrialStatus,
    evaluation_name,
)
from trainables.storage import disk
from trainables.storage.storage import Location


def test_items_of_a_trial_that_went_on_are_found(location: Location) -> None:
    ledger = Ledger(location)
    record = running(attempt=3, last=measurement(8, attempt=2))
    assert ledger.items(record) == []

    def evaluated(attempt: int, step: int, score: float) -> ItemScore:
        item = ItemScore(
            task="a", doc_hash="h", filter="none", score=score, prompt="", target="", answer=""
        )
        file = items_file(ledger.folder.attempt(0, attempt), evaluation_name(step))
        ledger.storage.write(ledger.folder.name(file), item.model_dump_json().encode())
        return item

    evaluated(1, 4, 0.0)
    evaluated(1, 8, 0.1)  # lost, and done again from the checkpoint at step 4
    newest = evaluated(2, 8, 0.2)
    assert ledger.items(record) == [newest]


def test_trials_come_back_by_number_in_their_newest_state(location: Location) -> None:
    ledger = Ledger(location)
    assert ledger.trials() == []
    numbers = [10000, 7, 2, 9999]
    for number in numbers:
        ledger.write_trial(running(number))
    done = trial(7, last=measurement(9), weights_dir="w")
    ledger.write_trial(done)
    found = ledger.trials()
    assert [record.number for record in found] == sorted(numbers)
    assert found[1] == done


def test_crash_while_writing_leaves_the_record_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_trial(running())

    def crash(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.write_trial(trial())
    assert [record.status for record in ledger.trials()] == [TrialStatus.RUNNING]
    monkeypatch.undo()
    ledger.write_trial(trial(status=TrialStatus.FAILED))
    assert [record.status for record in ledger.trials()] == [TrialStatus.FAILED]
    assert [path.name for path in ledger.folder.trial(0).iterdir()] == ["trial.json"]


def test_measurements_come_back_in_order(location: Location) -> None:
    for start in (1, 7):  # by one driver after another
        ledger = Ledger(location)
        for step in range(start, start + 6):
            ledger.append(0, measurement(step))
    ledger.append(12, measurement(3))
    wanted = [measurement(step) for step in range(1, 13)]
    assert Ledger(location).measurements(0) == wanted
    assert Ledger(location).histories() == {0: wanted, 12: [measurement(3)]}


def test_driver_that_lost_its_sweep_writes_nothing(location: Location) -> None:
    Ledger(location).write_trial(running())

    def lost() -> None:
        raise UserError([Fault("sweep", "was taken over")])

    ledger = Ledger(location, may_write=lost)
    for write in (
        lambda: ledger.write_trial(trial(status=TrialStatus.FAILED)),
        lambda: ledger.append(0, measurement(1)),
        lambda: ledger.write_warm_start([running()]),
    ):
        with pytest.raises(UserError, match="taken over"):
            write()
    assert Ledger(location).trials() == [running()]
    assert Ledger(location).histories() == {0: []}
    assert Ledger(location).warm_start() == []


def test_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for step in (5, 10, 15):
        ledger.append(0, measurement(step))
    file = ledger.folder.metrics(0)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:-30] + "\n" + lines[2])
    with pytest.raises(UserError) as caught:
        ledger.measurements(0)
    assert str(caught.value).startswith(f"{file}:2: is not JSON")
    assert "restore the line from a copy" in str(caught.value)


def test_whole_line_with_a_key_of_a_newer_version_is_no_damage(location: Location) -> None:
    """The next measurement would cut it off."""

    class Newer(Measurement):
        added: int = 1

    ledger = Ledger(location)
    ledger.append(0, measurement(5))
    ledger.append(0, Newer(step=10, metrics={}, time=1.0))
    log = ledger.folder.name(ledger.folder.metrics(0))
    before = ledger.storage.read_log(log)
    ledger = Ledger(location)
    for access in (lambda: ledger.measurements(0), lambda: ledger.append(0, measurement(15))):
        with pytest.raises(UserError, match="added is no key of this record; another version"):
            access()
    assert ledger.storage.read_log(log) == before


@pytest.mark.parametrize("resumed", [1, 5, 12, 20, 21])
def test_later_attempt_replaces_an_earlier_one_from_its_first_step_on(
    location: Location, resumed: int
) -> None:
    ledger = Ledger(location)
    for step in (5, 10, 15, 20):
        ledger.append(0, measurement(step, attempt=1))
    ledger.append(0, measurement(resumed, attempt=2))
    earlier = [measurement(step) for step in (5, 10, 15, 20) if step < resumed]
    assert ledger.measurements(0) == [*earlier, measurement(resumed, attempt=2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_left_out(location: Location, value: float) -> None:
    ledger = Ledger(location)
    last = measurement(1, {"train/loss": value, "kl/base_to_tuned": 0.5})
    ledger.write_trial(running(last=last))
    ledger.append(0, last)
    assert ledger.trials()[0].last == last
    (found,) = ledger.measurements(0)
    assert found.metrics == {"kl/base_to_tuned": 0.5}


def test_weights_are_found_only_inside_their_attempt(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "moved")
    attempt = ledger.folder.attempt(0, 1)
    (attempt / "weights").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (attempt / "linked").symlink_to(tmp_path / "elsewhere")
    assert ledger.weights(trial(weights_dir="/old/trials/0000/attempt_1/weights")) == (
        attempt / "weights"
    )
    assert ledger.weights(trial(weights_dir=str(tmp_path / "elsewhere"))) is None
    for outside in ("../../..", str(attempt / "linked")):
        record = trial(weights_dir=outside)
        with pytest.raises(UserError, match=r"0000/trial.json: weights_dir .* leads out of"):
            ledger.weights(record)
        with pytest.raises(UserError, match="best_weights_dir"):
            ledger.located(trial(best_weights_dir=outside))
