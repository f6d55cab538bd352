"""Opens, continues and ends the sweep's runs at W&B, online or offline."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import wandb

from analysis.results.formatting import one_line
from analysis.results.wandb_names import DELETED, RUN_SETTINGS
from trainables import metric_keys
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import Measurement
from trainables.storage.storage import Location
from tune.config.sweep_config import WandbConfig
from tune.tracking.offline_runs import discard_waiting, run_folders, uploaded_at
from tune.tracking.wandb_endings import ENDING, Endings
from tune.tracking.wandb_settings import asked_mode, keep_entity

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

_RUN_SETTINGS = {
    **RUN_SETTINGS,
    # A killed driver loses what is not flushed; the default is 15 s.
    "x_transaction_log_flush_interval": 1.0,
    "finish_timeout": 30,
    "finish_timeout_raises": True,
}


class WandbRuns:
    """Runs of one group, of which any number are open.

    A run that has been online is not continued offline, as `wandb sync` would repeat what the
    server already has. The next online start logs it from the ledger.

    Args:
        config: where to log.
        location: location of the sweep; W&B's files go to `wandb/` in its folder, or in the
            node's cache if the sweep is in an object store.
        notify: called with messages for the user.

    Attributes:
        group: id of the sweep; to be set before a run is opened.
        open: W&B's own objects, by the runs' ids.
        unconnected: ids of runs that could not be opened online while others were open.
        endings: of which runs W&B has the ends.
    """

    def __init__(
        self, config: WandbConfig, location: Location, notify: Callable[[str], None]
    ) -> None:
        self._config = config
        self._location = location
        self._notify = notify
        self._folder = SweepFolder(location).root
        entity = [config.entity] if config.entity else []
        self.endings = Endings(self._folder, "/".join([*entity, config.project]))
        self.group: str | None = None
        self.open: dict[str, Any] = {}
        self.unconnected: set[str] = set()
        self._newest_step: dict[str, int] = {}
        self._uploaded_at: dict[str, float] = {}
        self._deleted: set[str] = set()
        self._chosen_mode: Mode | None = None
        self._may_ask = False
        self._has_warned = False

    def mode(self) -> Mode:
        """Where runs go now; determined at the first call."""
        if self._chosen_mode is None:
            self._chosen_mode = "offline"
            with self.guarded("its settings"):
                self._chosen_mode = _find_mode(self._config)
                self._may_ask = self._chosen_mode == "online"
                if asked_mode(self._config) == "online" and not self._may_ask:
                    self._warn("wandb.mode is online without a key, logging offline: `wandb login`")
        return self._chosen_mode

    def start(self, run_id: str, name: str, job_type: str, config: dict[str, Any]) -> Any:
        """Open a run; None if W&B is disabled or must not have the run now.

        Offline, what an earlier start logged and nobody uploaded is deleted: the caller logs the
        run again from the ledger, as one run with one history.
        """
        if self.mode() == "disabled":
            return None
        run = self._connect({"id": run_id, "name": name, "job_type": job_type, "config": config})
        if run is not None:
            self.open[run_id] = run
            self._newest_step[run_id] = run.starting_step - 1 if self.mode() == "online" else -1
            self._uploaded_at[run_id] = uploaded_at(self._folder, run_id)
        return run

    def _connect(self, described: dict[str, Any]) -> Any:
        run_id = described["id"]
        online = run_folders(self._folder, run_id, "run")
        discard_waiting(self._folder, run_id)
        try:
            if self.mode() == "online":
                return self._init(described)
        except Exception as error:
            for new in set(run_folders(self._folder, run_id, "run")) - set(online):
                shutil.rmtree(new)
            if DELETED in str(error):
                self._deleted.add(run_id)
                return None
            # The id stays in use in W&B's service process, so only a new service process can take
            # it, and ending the old one would end every open run.
            if self.open:
                self.unconnected.add(run_id)
                raise
            self._note(f"W&B cannot be reached, logging offline: {error}")
            self.go_offline()
        return None if online else self._init(described)

    def _init(self, described: dict[str, Any]) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=self.group,
            tags=self._config.tags or None,
            dir=str(self._folder),
            mode=self.mode(),
            reinit="create_new",
            resume="allow",
            settings=wandb.Settings(**_RUN_SETTINGS),
            **described,
        )
        run.define_metric(metric_keys.GLOBAL_STEP)
        run.define_metric("*", step_metric=metric_keys.GLOBAL_STEP)
        if not (run.offline or self._config.entity):
            self._config = self._config.model_copy(update={"entity": run.entity})
            keep_entity(run.entity, self._location)
        return run

    def log(self, run_id: str, measurement: Measurement) -> bool:
        """Add a point to an open run unless W&B already has the step."""
        point = {**measurement.metrics, metric_keys.GLOBAL_STEP: measurement.step}
        return self._log(run_id, measurement.step, point, measurement.time)

    def log_curve(
        self, run_id: str, axis: str, curve: Sequence[Mapping[str, float]], last: int, at: float
    ) -> None:
        """Add a curve that is whole to an open run, in the order of its own x axis.

        W&B's steps only rise: its points get those after the last one.

        Args:
            run_id: the run.
            axis: key of the curve's x axis.
            curve: its points, each with that key.
            last: optimizer steps of the run.
            at: when the curve was measured, seconds since the epoch.
        """
        if (run := self.open.get(run_id)) is None:
            return
        for key in dict.fromkeys(key for point in curve for key in point):
            # By name: of several patterns that match, "*" among them, W&B takes any.
            x = None if key == axis else axis
            run.define_metric(key, step_metric=x, step_sync=False, summary="none")
            if "." in key:  # the summary's part of W&B takes a dot for a level of nesting
                run.define_metric(key.replace(".", r"\."), summary="none")
        for step, point in enumerate(curve, last + 1):
            self._log(run_id, step, point, at)

    def _log(self, run_id: str, step: int, point: Mapping[str, float], at: float) -> bool:
        run = self.open.get(run_id)
        if run is None or step <= self._newest_step[run_id]:
            return False
        if run.offline and at <= self._uploaded_at[run_id]:
            return False
        run.log({**point, "_timestamp": at}, step=step, commit=True)
        self._newest_step[run_id] = step
        return True

    def close(
        self, run_id: str, summary: Mapping[str, Any], exit_code: int, ending: str | None = None
    ) -> None:
        """End a run; a later start does not repeat it if W&B certainly has this ending."""
        run = self.open.pop(run_id, None)
        if ending is not None:
            self.endings.expect(run_id, ending)
        if run is not None:
            with self.guarded(f"the summary of run {run_id}"):
                run.summary.update({**summary, ENDING: ending})
            with self.guarded(f"the end of run {run_id}"):
                run.finish(exit_code=exit_code)
                if ending is not None and run.offline:
                    self.endings.note(run_id)
        elif run_id in self._deleted:
            with self.guarded(f"the end of the deleted run {run_id}"):
                self.endings.note(run_id)

    def go_offline(self) -> None:
        """Keep all later runs on disk; open runs end."""
        self._chosen_mode = "offline"
        wandb.teardown()
        _set_up(mode="offline")

    def ask(self, *pauses: float) -> None:
        """Note which runs W&B has in full; ask again after each pause for the others."""
        try:
            for pause in (0, *pauses):
                if not self._may_ask or not self.endings.lacking:
                    return
                time.sleep(pause)
                self.endings.ask()
        except Exception as error:
            logger.warning("W&B does not answer; the ledger has everything: %r", error)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Shield the sweep from W&B's exceptions; later runs do not retry the network."""
        try:
            yield
        except Exception as error:
            self._note(f"W&B failed at {what}; the ledger has it all: {error!r}")
            if self._chosen_mode == "online":
                self._chosen_mode = "offline"

    def _note(self, message: str) -> None:
        """Warn only the first time: a broken mirror must not fill the log."""
        if not self._has_warned:
            self._has_warned = True
            self._warn(message)

    def _warn(self, message: str) -> None:
        logger.warning(message)
        self._notify(f"warning: {one_line(message)}")


def _set_up(**settings: Any) -> Any:
    """W&B's session in this process, silent from the start."""
    return wandb.setup(wandb.Settings(silent=True, console="off", **settings))


def _find_mode(config: WandbConfig) -> Mode:
    """The sweep file's mode, else that of W&B's own settings; online requires a key.

    The key is only looked up: no prompt, no verification, and nothing is saved.
    """
    if asked_mode(config) == "disabled":  # whatever W&B says to its other settings
        return "disabled"
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
