"""Which lost processes count as a trial's failures, and what is not one."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
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
