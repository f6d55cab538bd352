"""A first-in-first-out scheduler for Tune whose cost does not grow with past trials."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from trainables.records.schema import Outcome
from tune.listeners import SweepListener


class Fifo(FIFOScheduler, SweepListener):
    """Chooses the trial that has waited longest.

    Tune's own scheduler searches all trials several times per report. Trials here are never paused,
    and one that lost its process returns as another trial.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_stopping = False
        self._waiting: list[Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its scheduler for a restore that never happens."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Queue the trial."""
        self._waiting.append(trial)

    def outcome(self, trial_id: str) -> Outcome | None:
        """How a trial ended that the scheduler stopped; None for any other."""
        return None

    def sweep_stopping(self) -> None:
        """Start no waiting trial; called from its own thread."""
        self._is_stopping = True

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first waiting trial; Tune calls this at each step."""
        self._waiting = [trial for trial in self._waiting if trial.status == Trial.PENDING]
        if self._is_stopping:
            for trial in self._waiting:
                trial.init_local_path()  # Tune's results ask for it also where nothing ran there
                tune_controller.stop_trial(trial)
            self._waiting = []
        return self._waiting[0] if self._waiting else None
