"""Which lost processes count as a trial's failures, and what is not one."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import trial as recorded
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from ray.tune.experiment import Trial

from trainables.records.schema import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.storage.disk import is_disk_full
from trainables.training.checkpoint_files import CheckpointLost
from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.listeners import SweepListener
from tune.tune_events import TuneEvents


class Interruptions(SweepListener):
    def __init__(self) -> None:
        self.records: list[TrialRecord] = []
        self.ended: list[TrialRecord] = []
        self.measurements: list[Measurement] = []

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        self.measurements.append(measurement)

    def trial_interrupted(self, record: TrialRecord) -> None:
        self.records.append(record)

    def trial_ended(self, record: TrialRecord) -> None:
        self.ended.append(record)


class LocalTrial(Trial):
    """Writes its errors to a folder of the test's, without Ray."""

    local_path = None


class Attempts:
    """Starts attempts of one trial and lets them end."""

    def __init__(
        self,
        retries: int,
        finished: Sequence[TrialRecord] = (),
        interrupted: Sequence[TrialRecord] = (),
        by_hand: Sequence[int] = (),
    ) -> None:
        self.heard = Interruptions()
        self.folder: Path | None = None
        listeners = [self.heard]
        self.by_hand = SimpleNamespace(asked=frozenset(by_hand))
        self.events = TuneEvents(
            listeners,
            retries,
            finished,
            interrupted,
            stopped=lambda trial_id: None,
            by_hand=self.by_hand,  # type: ignore[arg-type]
        )
        self._count = 0

    def start(self, step: int) -> Any:
        self._count += 1
        config = {
            "trial": recorded(0).config.model_dump(mode="json"),
            "params": {},
            "confirms": None,
            "attempt": self._count,
        }
        trial = SimpleNamespace(trial_id=f"t{self._count}", config=config)
        self.events.on_trial_start(0, [], trial)  # type: ignore[arg-type]
        if step:
            measurement = {"step": step, "metrics": {}, "time": 0}
            self.events.on_trial_result(0, [], trial, {MEASUREMENT: measurement})  # type: ignore[arg-type]
        return trial

    def lose(self, step: int, error: Exception | None = None) -> None:
        trial = self.start(step)
        trial.error_file = None
        if error is not None:
            in_tune = LocalTrial("any", stub=True)
            in_tune.local_path = self.folder
            in_tune.handle_error(error)
            trial.error_file = in_tune.error_file
        self.events.on_trial_error(0, [], trial)


@pytest.mark.parametrize("ended", [True, False])
def test_times_are_in_the_order_of_arrival_if_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    earlier = recorded(7).after(Measurement(step=1, metrics={}, time=2e9))
    monkeypatch.setattr("tune.tune_events.time.time", partial(float, 1e9))
    attempts = Attempts(0, [earlier], []) if ended else Attempts(0, [], [earlier])
    for _ in range(3):
        attempts.start(step=1)
    lines = [measurement.model_dump_json() for measurement in attempts.heard.measurements]
    times = [Measurement.model_validate_json(line).time for line in lines]
    assert [2e9, *times] == sorted({2e9, *times})
    assert times == pytest.approx([2e9] * 3, abs=10.0)


def test_lost_process_counts_only_without_progress_since_the_last() -> None:
    attempts = Attempts(retries=1)
    for step, failures in ((5, 0), (9, 0), (8, 1), (12, 1)):  # the third went over old steps again
        attempts.lose(step)
        assert attempts.heard.records[-1].failures == failures
    attempts.lose(12)
    (ended,) = attempts.heard.ended
    assert (ended.status, ended.failures) == (TrialStatus.FAILED, 2)


SOCKET = "The actor is temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14"
ADVICE = "Some common causes include: (1) the process was killed by the OOM killer"


def raised(error: Exception) -> RayTaskError:
    """The error of a trial's function, as Ray hands it to Tune."""
    text = f"ray::ImplicitFunc.train()\n{traceback.format_exception_only(error)[-1]}"
    return RayTaskError("train", text, error, ip="").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (raised(OSError("store out")), "OSError: store out"),
        (raised(CheckpointLost("gone")), "CheckpointLost: gone"),
        (raised(ActorDiedError()), "ActorDiedError: The actor died unexpectedly"),  # a worker's
        (ActorUnavailableError(SOCKET, b"1" * 16), "its process or node was lost: The actor 3131"),
        (ActorDiedError(), "its process or node was lost: The actor died unexpectedly"),
        (RayActorError(error_msg=f"Dead.\n\tIt is. {ADVICE}"), f"lost: It is. {ADVICE}"),
        (OutOfMemoryError("Killed.\nToo little memory."), "node was lost: Too little memory."),
        (None, "its process or node was lost"),
    ],
)
def test_reason_of_a_lost_trial_ends_with_rays_message(
    tmp_path: Path, error: Exception | None, reason: str
) -> None:
    attempts = Attempts(retries=0)
    attempts.folder = tmp_path
    attempts.lose(5)
    attempts.lose(5, error)
    (ended,) = attempts.heard.ended
    assert reason in (ended.reason or "")
    assert not re.match(r"\w+\.", ended.reason or "")  # no module before the error's name


@pytest.mark.parametrize("user_stops", [False, True])
def test_trial_whose_node_is_removed_goes_on_at_once(user_stops: bool) -> None:
    attempts = Attempts(retries=0)
    trial = attempts.start(step=3)
    if user_stops:
        attempts.events.sweep_stopping()
    outcome = Outcome(status=TrialStatus.RUNNING)
    attempts.events.on_trial_result(0, [], trial, {OUTCOME: outcome.model_dump()})
    assert [record.failures for record in attempts.heard.records] == ([] if user_stops else [0])
    assert len(attempts.events.running) == 1


@pytest.mark.parametrize("user_stops", [False, True])
def test_trial_stopped_by_hand_does_not_go_on(user_stops: bool) -> None:
    attempts = Attempts(retries=0, by_hand=[0])
    trial = attempts.start(step=3)
    if user_stops:
        attempts.events.sweep_stopping()
    outcome = Outcome(status=TrialStatus.RUNNING)
    attempts.events.on_trial_result(0, [], trial, {OUTCOME: outcome.model_dump()})
    (ended,) = attempts.heard.ended
    assert (ended.status, ended.reason) == (TrialStatus.CANCELLED, "ended by hand")
    assert ended.last is not None
    assert attempts.events.running == attempts.heard.records == []


@pytest.mark.parametrize("retries", [0, 5])
def test_trial_to_be_stopped_by_hand_ends_with_its_process(retries: int) -> None:
    attempts = Attempts(retries)
    attempts.lose(step=3)
    attempts.by_hand.asked = {0}
    attempts.lose(step=3)
    (ended,) = attempts.heard.ended
    assert (ended.status, ended.reason) == (TrialStatus.CANCELLED, "ended by hand")


def test_full_disk_ends_the_sweep_and_leaves_the_trial_unfinished() -> None:
    attempts = Attempts(retries=0)
    full = Outcome(status=TrialStatus.RUNNING, reason="disk full: /d has 0.0 MiB free of 1.0 MiB")
    outcome = {OUTCOME: full.model_dump(mode="json")}
    trial = attempts.start(3)
    with pytest.raises(OSError, match="disk full: /d") as caught:
        attempts.events.on_trial_result(0, [], trial, outcome)
    assert is_disk_full(caught.value)
    assert [record.last.step for record in attempts.events.running if record.last] == [3]
    assert attempts.heard.ended == []


def test_seconds_of_a_trial_are_those_of_its_attempts() -> None:
    record = recorded(0).model_copy(update={"started": 100.0, "ended": None})

    def go_on(record: TrialRecord, at: float) -> TrialRecord:
        return record.in_next_attempt(record.config, record.attempt + 1, at)

    measured = record.after(Measurement(step=1, metrics={}, time=160.0))
    second = go_on(measured, 50_000.0)
    assert second.seconds_at(50_007.0) == 67.0
    assert second.seconds_at(160.0) == 60.0  # at its newest measurement, of the attempt before
    third = go_on(second, 90_000.0)  # the second was lost before it measured anything
    fourth = go_on(third.after(Measurement(step=2, metrics={}, time=90_005.0)), 95_000.0)
    assert fourth.seconds is None
    assert fourth.model_copy(update={"ended": 95_010.0}).seconds == 75.0
    assert (fourth.started, fourth.began) == (100.0, 95_000.0)
