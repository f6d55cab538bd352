"""W&B as a mirror of the sweep: one run per trial and one for the base, all in one group.

The ledger is the source of truth. Whatever W&B raises is logged, and the sweep continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from analysis.results.formatting import how_many
from analysis.results.wandb_names import STRENGTH, base_run_id, upload_command
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import BaseRecord, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from trainables.storage.storage import Location
from tune.config.sweep_config import WandbConfig
from tune.listeners import SweepListener
from tune.tracking.offline_runs import waiting_runs, was_ever_online
from tune.tracking.wandb_endings import PER_PAGE
from tune.tracking.wandb_fields import (
    base_config,
    base_summary,
    best_values,
    group_of,
    strength_curve,
    trial_config,
    trial_name,
)
from tune.tracking.wandb_runs import WandbRuns

# W&B shows 0 as finished and anything else as failed (254 as crashed); the summary says why a trial
# failed. 130 is a shell's exit code for an interrupted process.
_FINISHED, _FAILED, _INTERRUPTED = 0, 1, 130
_EXIT_CODES = {
    TrialStatus.COMPLETE: _FINISHED,
    TrialStatus.STOPPED_EARLY: _FINISHED,
    TrialStatus.CANCELLED: _INTERRUPTED,
}

# Seconds before W&B is asked again, as it may show new data only a moment later.
_PAUSES = (1, 4)


class WandbListener(SweepListener):
    """Logs each trial as a run whose x axis is the optimizer step, and its curve over strengths.

    A run that an earlier start of the command left open is resumed: what the ledger has and W&B
    lacks is logged first, and no step twice. A trial that ended in the ledger but not in W&B is
    ended there at the next start. For the arguments see `WandbRuns`.
    """

    def __init__(
        self,
        config: WandbConfig,
        location: Location,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._location = location
        self._folder = SweepFolder(location).root
        self._runs = WandbRuns(config, location, notify)
        self._endings = self._runs.endings

    def is_online(self) -> bool:
        """Whether the runs are already at W&B."""
        return self._runs.mode() == "online"

    def upload_hints(self) -> list[str]:
        """Commands that upload the data that W&B does not have yet."""
        if self._runs.mode() == "disabled":
            return []
        hints = []
        if waiting_runs(self._folder):
            hints.append(upload_command(self._folder / "wandb"))
        if lacking := self._endings.lacking:
            lacks = ": W&B's files do not hold"
            if self.is_online() or was_ever_online(self._folder):
                lacks = " with W&B online: it has not confirmed"
            hints.append(f"the same command{lacks} {how_many(len(lacking), 'run')} in full")
        return hints

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Log the base and the finished trials that earlier starts did not log."""
        self._runs.group = sweep.sweep_id
        if self._runs.mode() == "disabled":
            return
        base_id = base_run_id(sweep.sweep_id)
        endings = {base_id: base.key, **{r.config.trial_id: _ending(r) for r in history}}
        for run_id, ending in endings.items():
            self._endings.expect(run_id, ending)
        if history or was_ever_online(self._folder):  # on a new head nothing is noted here
            self._runs.ask()
        if base_id in self._endings.lacking:
            self._log_base(base_id, sweep, base)
        self._log_finished(r for r in history if r.config.trial_id in self._endings.lacking)

    def trial_started(self, record: TrialRecord) -> None:
        """Open or resume the trial's run."""
        trial_id = record.config.trial_id
        with self._runs.guarded(f"the run of trial {record.number}"):
            if trial_id in self._runs.open:
                self._runs.open[trial_id].config.update(trial_config(record), allow_val_change=True)
                return
            name, config = trial_name(record.config), trial_config(record)
            run = self._runs.start(trial_id, name, record.config.recipe, config)
            if run is None:
                return
            run.summary.update({"status": record.status.value, "reason": None})
            run.summary.update(best_values(record))
            for measurement in Ledger(self._location).measurements(record.number):
                self._runs.log(trial_id, measurement)

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Add a point to the trial's curves."""
        trial_id = record.config.trial_id
        with self._runs.guarded(f"step {measurement.step} of trial {record.number}"):
            if self._runs.log(trial_id, measurement):
                self._runs.open[trial_id].summary.update(best_values(record))

    def trial_ended(self, record: TrialRecord) -> None:
        """Close the trial's run with its final values and its true exit code."""
        verdict = {"status": record.status.value, "reason": record.reason}
        code = _EXIT_CODES.get(record.status, _FAILED)
        summary = {**record.metrics, **best_values(record), **verdict}
        with self._runs.guarded(f"the group of trial {record.number}"):
            if run := self._runs.open.get(record.config.trial_id):
                run.config.update(group_of(record), allow_val_change=True)
        self._log_strengths(record)
        self._runs.close(record.config.trial_id, summary, code, _ending(record))
        if len(self._endings.lacking) % PER_PAGE == 0:
            self._runs.ask()

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Close the runs of interrupted trials, which the next start resumes; check the others."""
        verdict = {"status": "INTERRUPTED", "reason": "the sweep ended before the trial"}
        # All at once, as W&B out of reach takes half a minute for each.
        with ThreadPoolExecutor(len(self._runs.open) or 1) as threads:
            for run_id in list(self._runs.open):
                threads.submit(self._runs.close, run_id, verdict, _INTERRUPTED)
        self._runs.ask(*_PAUSES)
        unlogged = self._runs.unconnected & self._endings.lacking.keys()
        if unlogged:
            with self._runs.guarded("going offline"):
                self._runs.go_offline()
            self._log_finished(r for r in records if r.config.trial_id in unlogged)

    def _log_strengths(self, record: TrialRecord) -> None:
        """Add the curve over strengths, at once: they are measured in any order, and again."""
        if record.last and (curve := strength_curve(record)):
            measured = max(view.last.time for view in record.curve if view.last)
            with self._runs.guarded(f"the strengths of trial {record.number}"):
                trial_id, last = record.config.trial_id, record.last.step
                self._runs.log_curve(trial_id, STRENGTH, curve, last, measured)

    def _log_finished(self, records: Iterable[TrialRecord]) -> None:
        """Log trials from the ledger alone."""
        for record in records:
            self.trial_started(record)
            self.trial_ended(record)

    def _log_base(self, run_id: str, sweep: SweepRecord, base: BaseRecord) -> None:
        with self._runs.guarded("the run of the base"):
            self._runs.start(run_id, "base", "base", base_config(sweep, base))
            self._runs.log(run_id, Measurement(step=0, metrics=base.metrics, time=time.time()))
        self._runs.close(run_id, base_summary(sweep, base), _FINISHED, base.key)


def _ending(record: TrialRecord) -> str:
    """Identifies one ending of a trial among several, as a failed trial may be retried."""
    return f"{record.status} {record.attempt} {record.ended}"
