"""Which runs W&B has in full: asked of W&B, and noted in the sweep's folder.

A run's `finish()` returns normally even if W&B refused the data, so only W&B's answer counts.
"""

from __future__ import annotations

import time
from pathlib import Path

import wandb

# The key of an ending in a run's summary. W&B gets it after the curves and before the final state.
ENDING = "ending"

# A run whose data end without its end remains "running", and is "crashed" a few minutes later.
_FINAL_STATES = ("finished", "failed", "killed")

PER_PAGE = 200
_REQUEST_SECONDS = 10
_PATIENCE_SECONDS = 30  # the sweep waits meanwhile


class Endings:
    """The ends of a sweep's runs.

    Args:
        folder: the sweep's folder.
        project: `ENTITY/PROJECT`, or `PROJECT` for the key's own entity.

    Attributes:
        lacking: ends that W&B is not known to have, by run.
    """

    def __init__(self, folder: Path, project: str) -> None:
        self._notes = folder / "wandb" / "ended"
        self._project = project
        self.lacking: dict[str, str] = {}

    def expect(self, run_id: str, ending: str) -> None:
        """Count this end of a run as lacking, unless it is noted that W&B has it."""
        note = self._notes / run_id
        if not (note.is_file() and note.read_text(encoding="utf-8") == ending):
            self.lacking[run_id] = ending

    def note(self, run_id: str) -> None:
        """Remember that W&B has it, so that no later start repeats it."""
        self._notes.mkdir(parents=True, exist_ok=True)
        (self._notes / run_id).write_text(self.lacking.pop(run_id), encoding="utf-8")

    def ask(self) -> None:
        """Note the ends that W&B has, the newest first, until the time is over.

        Raises:
            Exception: W&B does not answer.
        """
        give_up = time.monotonic() + _PATIENCE_SECONDS
        waiting = list(self.lacking)[::-1]
        api = wandb.Api(timeout=_REQUEST_SECONDS)
        for start in range(0, len(waiting), PER_PAGE):
            if time.monotonic() > give_up:
                return
            wanted = {"name": {"$in": waiting[start : start + PER_PAGE]}}
            # With `lazy=False`, every page of runs includes their summaries.
            for run in api.runs(self._project, filters=wanted, per_page=PER_PAGE, lazy=False):
                if run.state in _FINAL_STATES and run.summary.get(ENDING) == self.lacking[run.id]:
                    self.note(run.id)
