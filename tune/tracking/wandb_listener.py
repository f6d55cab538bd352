"""W&B as a mirror of the sweep: one run per trial and one for the base, all in one group.

The ledger is the source of truth. Whatever W&B raises is logged, and the sweep continues.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import wandb

from trainables import metric_keys
from trainables.files.disk import flush
from trainables.files.storage import Location
from trainables.records.folder import SweepFolder
from trainables.records.ledger import Ledger
from trainables.records.schema import (
    BaseRecord,
    Measurement,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)
from trainables.results.wandb_names import RUN_SETTINGS, base_run_id, upload_command
from trainables.results.wording import one_line
from tune.config.sweep_config import WandbConfig
from tune.folder.wandb_project import keep_entity
from tune.listeners import SweepListener
from tune.tracking.wandb_endings import ENDING, PER_PAGE, Endings
from tune.tracking.wandb_fields import (
    base_config,
    base_summary,
    best_values,
    group_of,
    trial_config,
    trial_name,
)
from tune.tracking.wandb_parts import (
    is_empty,
    is_offline,
    mend,
    parts_of,
    set_aside,
    steps_in,
    waiting_parts,
    was_ever_online,
)

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

# W&B shows 0 as finished and anything else as failed (254 as crashed); the summary says why a trial
# failed. 130 is a shell's exit code for an interrupted process.
_FINISHED, _FAILED, _INTERRUPTED = 0, 1, 130
_EXIT_CODES = {
    TrialStatus.COMPLETE: _FINISHED,
    TrialStatus.STOPPED_EARLY: _FINISHED,
    TrialStatus.CANCELLED: _INTERRUPTED,
}

_RUN_SETTINGS = {
    **RUN_SETTINGS,
    # A killed driver loses what is not flushed; the default is 15 s.
    "x_transaction_log_flush_interval": 1.0,
    "finish_timeout": 30,
    "finish_timeout_raises": True,
}


# W&B takes a run that its user deleted under this id no more.
_DELETED = "was previously created and deleted"

# What W&B has just got, it may show a moment later: the seconds before it is asked again.
_PAUSES = (1, 4)


class WandbListener(SweepListener):
    """Logs each trial as a run whose x axis is the optimizer step.

    A run that an earlier start of the command left open is resumed: what the ledger has and W&B
    lacks is logged first, and no step twice. Likewise a trial that ended in the ledger but not in
    W&B, because the driver died in between or W&B refused its data, is ended at the next start.

    A run that has been online is not continued offline: only its server knows from where, and
    `wandb sync` repeats under other numbers what the server already has. The next online start logs
    it from the ledger.

    Args:
        config: where to log.
        location: location of the sweep; W&B's files go to `wandb/` in its folder, or in the
            node's cache if the sweep is in an object store.
        tell: called with what the user should know.
    """

    def __init__(
        self,
        config: WandbConfig,
        location: Location,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._config = config
        self._location = location
        self._tell = tell
        self._folder = SweepFolder(location).root
        entity = [config.entity] if config.entity else []
        self._endings = Endings(self._folder, "/".join([*entity, config.project]))
        self._group: str | None = None
        self._runs: dict[str, Any] = {}
        self._newest_step: dict[str, int] = {}
        self._unconnected: set[str] = set()
        self._deleted: set[str] = set()
        self._chosen_mode: Mode | None = None
        self._may_ask = False
        self._has_warned = False

    def is_online(self) -> bool:
        """Whether the runs are already at W&B."""
        return self._mode() == "online"

    def upload_hints(self) -> list[str]:
        """What uploads the data that W&B does not have yet."""
        if self._mode() == "disabled":
            return []
        hints = []
        if waiting_parts(self._folder):
            folder = self._folder / "wandb"
            if folder.is_relative_to(Path.cwd()):
                folder = folder.relative_to(Path.cwd())
            hints.append(upload_command(folder))
        if lacking := self._endings.lacking:
            runs = "1 run" if len(lacking) == 1 else f"{len(lacking)} runs"
            hints.append(f"the same command with W&B online: it has not confirmed {runs} in full")
        return hints

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Log the base and the finished trials that earlier starts did not log."""
        self._group = sweep.sweep_id
        if self._mode() == "disabled":
            return
        base_id = base_run_id(sweep.sweep_id)
        endings = {base_id: base.key, **{r.config.trial_id: _ending(r) for r in history}}
        for run_id, ending in endings.items():
            if not self._endings.is_noted(run_id, ending):
                self._endings.lacking[run_id] = ending
        if history or was_ever_online(self._folder):  # on a new head nothing is noted here
            self._ask()
        if base_id in self._endings.lacking:
            self._log_base(base_id, sweep, base)
        self._log_finished(r for r in history if r.config.trial_id in self._endings.lacking)

    def trial_started(self, record: TrialRecord) -> None:
        """Open or resume the trial's run."""
        trial_id = record.config.trial_id
        with self._guarded(f"the run of trial {record.number}"):
            if trial_id in self._runs:
                self._runs[trial_id].config.update(trial_config(record), allow_val_change=True)
                return
            name, config = trial_name(record.config), trial_config(record)
            run = self._start(trial_id, name, record.config.method, config)
            if run is None:
                return
            run.summary.update({"status": record.status.value, "reason": None})
            run.summary.update(best_values(record))
            for measurement in Ledger(self._location).measurements(record.number):
                self._log(trial_id, measurement)

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Add a point to the trial's curves."""
        trial_id = record.config.trial_id
        with self._guarded(f"step {measurement.step} of trial {record.number}"):
            if self._log(trial_id, measurement):
                self._runs[trial_id].summary.update(best_values(record))

    def trial_ended(self, record: TrialRecord) -> None:
        """Close the trial's run with its final values and its true exit code."""
        final = record.last.metrics if record.last else {}
        verdict = {"status": record.status.value, "reason": record.reason}
        code = _EXIT_CODES.get(record.status, _FAILED)
        summary = {**final, **best_values(record), **verdict}
        with self._guarded(f"the group of trial {record.number}"):
            if run := self._runs.get(record.config.trial_id):
                run.config.update(group_of(record), allow_val_change=True)
        self._close(record.config.trial_id, summary, code, _ending(record))
        if len(self._endings.lacking) % PER_PAGE == 0:
            self._ask()

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Close the runs of interrupted trials, which the next start resumes; check the others."""
        verdict = {"status": "INTERRUPTED", "reason": "the sweep ended before the trial"}
        # All at once, as W&B out of reach takes half a minute for each.
        with ThreadPoolExecutor(len(self._runs) or 1) as threads:
            for run_id in list(self._runs):
                threads.submit(self._close, run_id, verdict, _INTERRUPTED)
        self._ask(*_PAUSES)
        unlogged = self._unconnected & self._endings.lacking.keys()
        if unlogged:
            with self._guarded("going offline"):
                self._go_offline()
            self._log_finished(r for r in records if r.config.trial_id in unlogged)

    def _log_finished(self, records: Iterable[TrialRecord]) -> None:
        """Log trials from the ledger alone."""
        for record in records:
            self.trial_started(record)
            self.trial_ended(record)

    def _log_base(self, run_id: str, sweep: SweepRecord, base: BaseRecord) -> None:
        with self._guarded("the run of the base"):
            self._start(run_id, "base", "base", base_config(sweep, base))
            self._log(run_id, Measurement(step=0, metrics=base.metrics, time=time.time()))
        self._close(run_id, base_summary(sweep, base), _FINISHED, base.key)

    def _log(self, run_id: str, measurement: Measurement) -> bool:
        """Add a point to an open run unless it already has the step."""
        run, step = self._runs.get(run_id), measurement.step
        if run is None or step <= self._newest_step[run_id]:
            return False
        # W&B's own step is set to ours: `wandb sync` keeps it if the parts of a run do not overlap,
        # and counts on from the last one if they do.
        times = {metric_keys.GLOBAL_STEP: step, "_timestamp": measurement.time}
        run.log({**measurement.metrics, **times}, step=step, commit=True)
        self._newest_step[run_id] = step
        return True

    def _start(self, run_id: str, name: str, job_type: str, config: dict[str, Any]) -> Any:
        """Open a run; None if W&B is disabled or must not have the run now."""
        if self._mode() == "disabled":
            return None
        earlier = parts_of(self._folder, run_id)
        for part in earlier:
            mend(part)
        steps = {part: steps_in(part) for part in earlier}
        was_online = any(steps[part] for part in earlier if not is_offline(part))
        run = self._connect(run_id, name, job_type, config, was_online)
        if run is None:
            return None
        self._runs[run_id] = run
        is_online = self._mode() == "online"
        newest_step = max(chain.from_iterable(steps.values()), default=-1)
        self._newest_step[run_id] = run.starting_step - 1 if is_online else newest_step
        for part in earlier:
            # Online, the server gets all that it lacks from the ledger.
            if is_online or is_empty(part):
                set_aside(part)
        return run

    def _connect(
        self, run_id: str, name: str, job_type: str, config: dict[str, Any], was_online: bool
    ) -> Any:
        try:
            if self._mode() == "online":
                return self._init(run_id, name, job_type, config)
        except Exception as error:
            if _DELETED in str(error):
                self._deleted.add(run_id)
                return None
            # The id stays in use in W&B's service process, so only a new service process can take
            # it, and ending the old one would end every open run.
            if self._runs:
                self._unconnected.add(run_id)
                raise
            self._note(f"W&B cannot be reached, logging offline: {error}")
            self._go_offline()
        return None if was_online else self._init(run_id, name, job_type, config)

    def _go_offline(self) -> None:
        self._chosen_mode = "offline"
        wandb.teardown()
        _set_up(mode="offline")

    def _init(self, run_id: str, name: str, job_type: str, config: dict[str, Any]) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=run_id,
            name=name,
            group=self._group,
            job_type=job_type,
            tags=self._config.tags or None,
            config=config,
            dir=str(self._folder),
            mode=self._mode(),
            reinit="create_new",
            resume="allow",
            settings=wandb.Settings(**_RUN_SETTINGS),
        )
        run.define_metric(metric_keys.GLOBAL_STEP)
        run.define_metric("*", step_metric=metric_keys.GLOBAL_STEP)
        if not (run.offline or self._config.entity):
            self._config = self._config.model_copy(update={"entity": run.entity})
            keep_entity(run.entity, self._location)
        return run

    def _close(
        self, run_id: str, summary: Mapping[str, Any], exit_code: int, ending: str | None = None
    ) -> None:
        """End a run; what certainly has its final ending is not repeated by a later start."""
        run = self._runs.pop(run_id, None)
        if ending is not None:
            self._endings.lacking[run_id] = ending
        if run is not None:
            with self._guarded(f"the summary of run {run_id}"):
                run.summary.update({**summary, ENDING: ending})
            with self._guarded(f"the end of run {run_id}"):
                is_certain = run.offline
                run.finish(exit_code=exit_code)
                if ending is not None and is_certain:
                    self._note_offline_ending(run_id)
        elif run_id in self._deleted:
            with self._guarded(f"the end of the deleted run {run_id}"):
                self._endings.note(run_id)

    def _note_offline_ending(self, run_id: str) -> None:
        for part in parts_of(self._folder, run_id):
            flush(part)  # W&B leaves that to the system
        self._endings.note(run_id)

    def _ask(self, *pauses: float) -> None:
        """Note which runs W&B has to their ends; ask again after each pause for what it lacks."""
        try:
            for pause in (0, *pauses):
                if not self._may_ask or not self._endings.lacking:
                    return
                time.sleep(pause)
                self._endings.ask()
        except Exception as error:
            logger.warning("W&B does not say what it has; the ledger has it all: %r", error)

    def _mode(self) -> Mode:
        if self._chosen_mode is None:
            self._chosen_mode = "offline"
            with self._guarded("its settings"):
                self._chosen_mode = _find_mode(self._config)
                self._may_ask = self._chosen_mode == "online"
                asked = self._config.mode or os.environ.get("WANDB_MODE")
                if asked == "online" and not self._may_ask:
                    self._warn("wandb.mode is online without a key, logging offline: `wandb login`")
        return self._chosen_mode

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Shield the sweep from W&B's exceptions; later runs do not retry the network."""
        try:
            yield
        except Exception as error:
            self._note(f"W&B failed at {what}; the ledger has it all: {error!r}")
            if self._chosen_mode == "online":
                self._chosen_mode = "offline"

    def _note(self, message: str) -> None:
        """Warn only the first time: a broken mirror must not fill the log."""
        if self._has_warned:
            logger.debug(message)
            return
        self._has_warned = True
        self._warn(message)

    def _warn(self, message: str) -> None:
        logger.warning(message)
        self._tell(f"warning: {one_line(message)}")


def _set_up(**settings: Any) -> Any:
    """W&B's session in this process, silent from the start."""
    return wandb.setup(wandb.Settings(silent=True, console="off", **settings))


def _find_mode(config: WandbConfig) -> Mode:
    """The sweep file's mode, else that of W&B's own settings; online requires a key.

    The key is only looked up: no prompt, no verification, and nothing is saved.
    """
    wanted = _set_up(**({"mode": config.mode} if config.mode else {})).settings.mode
    if wanted == "disabled":
        return "disabled"
    if wanted == "offline":
        return "offline"
    if wandb.login(prompt=False, verify=False):
        return "online"
    # W&B's service would otherwise send its own telemetry.
    _set_up(mode="offline")
    return "offline"


def _ending(record: TrialRecord) -> str:
    """Identifies one ending of a trial among several, as a failed trial may be retried."""
    return f"{record.status} {record.attempt} {record.ended}"
