"""Tune's first-in-first-out scheduler, at a cost that does not grow with the trials behind it."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from trainables.results.records import Outcome
from tune.listeners import SweepListener


class InOrder(FIFOScheduler, SweepListener):
    """Chooses the trial that has waited longest.

    Tune's own looks for it among all trials there ever were, some times at each report. None of
    ours is paused, and what lost its process comes again as another trial, so one that was chosen
    need not be looked at any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_stopping = False
        self._waiting: list[Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its scheduler for a restore that is never asked for."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Let it wait for its turn."""
        self._waiting.append(trial)

    def outcome(self, trial_id: str) -> Outcome | None:
        """How a trial ended that was stopped here: none is."""
        return None

    def sweep_stopping(self) -> None:
        """What still waits for room never starts; called from a thread of its own."""
        self._is_stopping = True

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first that waits. Tune asks at each of its steps, in its own thread."""
        self._waiting = [trial for trial in self._waiting if trial.status == Trial.PENDING]
        if self._is_stopping:
            for trial in self._waiting:
                tune_controller.stop_trial(trial)
            self._waiting = []
        return self._waiting[0] if self._waiting else None
